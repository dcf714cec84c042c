// From uploaded data files to one array of token ids, in memory that the stages share. Text files are read whole, encoded in
// order and joined; files of token ids are uint16, little-endian, as nanoGPT writes them.

import { GptdError } from '../model/errors.ts';
import { charAlphabet, createTokenizer, type Tokenizer, type TokenizerSpec } from '../model/tokenizer.ts';
import type { ChunkReader } from './chunk-reader.ts';
import type { PreparerCalls } from './messages.ts';

const UINT16_IDS_MAX = 65536;

/** See PreparerCalls.tokenize. Throws `invalid_spec` for data that cannot be read that way. */
export async function tokenize(
  reader: ChunkReader,
  request: PreparerCalls['tokenize'][0],
): Promise<PreparerCalls['tokenize'][1]> {
  const { files, vocabSize } = request;
  if (request.tokenizer === null) return tokenFiles(reader, { files, vocabSize });
  const texts = files.map(({ digest, format }) => {
    if (format === 'tokens') {
      throw new GptdError(
        'invalid_spec',
        'Files of token ids (.bin) need --tokenizer none: text files are .txt or .jsonl.',
      );
    }
    const text = decodeText(reader.readBlob(digest));
    return format === 'jsonl' ? jsonLines(text) : [text];
  });
  const documents = texts.flat();
  const spec: TokenizerSpec =
    request.tokenizer.type === 'char' && request.tokenizer.alphabet === null
      ? { type: 'char', alphabet: charAlphabet(documents.join('\n')) }
      : request.tokenizer;
  const tokenizer = await createTokenizer(spec);
  if (tokenizer.vocabSize > vocabSize) {
    throw new GptdError(
      'invalid_spec',
      `The tokenizer has ${tokenizer.vocabSize} ids and the model a vocabulary of ${vocabSize}: the model needs at least as many.`,
    );
  }
  const parts = encodeDocuments(tokenizer, documents);
  const tokenCount = parts.reduce((sum, part) => sum + part.length, 0);
  const wideTokens = vocabSize > UINT16_IDS_MAX;
  const tokens = new SharedArrayBuffer(tokenCount * (wideTokens ? 4 : 2));
  const ids = wideTokens ? new Uint32Array(tokens) : new Uint16Array(tokens);
  let at = 0;
  for (const part of parts) {
    ids.set(part, at);
    at += part.length;
  }
  const characterCount = documents.reduce((sum, document) => sum + document.length, 0);
  return { tokens, wideTokens, tokenCount, characterCount, tokenizer: spec };
}

/** Documents are parted by the end-of-text token where the vocabulary has one, by a line break elsewhere. */
function encodeDocuments(tokenizer: Tokenizer, documents: readonly string[]): Uint32Array[] {
  const { endOfText } = tokenizer;
  if (endOfText === null) return [tokenizer.encode(documents.join('\n'))];
  return documents.flatMap((document, i) => {
    const ids = tokenizer.encode(document);
    return i === 0 ? [ids] : [Uint32Array.of(endOfText), ids];
  });
}

function decodeText(bytes: Uint8Array): string {
  try {
    return new TextDecoder('utf-8', { fatal: true }).decode(bytes);
  } catch (error) {
    throw new GptdError('invalid_spec', 'A data file is not UTF-8 text.', { cause: error });
  }
}

function jsonLines(text: string): string[] {
  return text.split('\n').flatMap((line, i) => {
    if (line.trim() === '') return [];
    let row: unknown;
    try {
      row = JSON.parse(line);
    } catch (error) {
      throw new GptdError('invalid_spec', `Line ${i + 1} of a .jsonl file is not JSON.`, { cause: error });
    }
    const field = (row as { text?: unknown } | null)?.text;
    if (typeof field !== 'string') {
      throw new GptdError('invalid_spec', `Line ${i + 1} of a .jsonl file has no "text" field that is a string.`);
    }
    return [field];
  });
}

function tokenFiles(
  reader: ChunkReader,
  { files, vocabSize }: Pick<PreparerCalls['tokenize'][0], 'files' | 'vocabSize'>,
): PreparerCalls['tokenize'][1] {
  const blobs = files.map(({ digest, format }) => {
    if (format !== 'tokens') {
      throw new GptdError(
        'invalid_spec',
        'Text files need a tokenizer: gpt2, byte or char; "none" reads .bin files of ids.',
      );
    }
    const bytes = reader.readBlob(digest);
    if (bytes.length % 2 !== 0) {
      throw new GptdError('invalid_spec', `A .bin file has ${bytes.length} bytes: uint16 ids need an even number.`);
    }
    return bytes;
  });
  const byteCount = blobs.reduce((sum, blob) => sum + blob.length, 0);
  const tokens = new SharedArrayBuffer(byteCount);
  const bytes = new Uint8Array(tokens);
  let at = 0;
  for (const blob of blobs) {
    bytes.set(blob, at);
    at += blob.length;
  }
  const ids = new Uint16Array(tokens);
  const bad = ids.findIndex((id) => id >= vocabSize);
  if (bad >= 0) {
    throw new GptdError(
      'invalid_spec',
      `Token ${bad} of the data is ${ids[bad]}: the model's ids go from 0 to ${vocabSize - 1}.`,
    );
  }
  return { tokens, wideTokens: false, tokenCount: ids.length, characterCount: 0, tokenizer: null };
}

/** Token ids of a stored dataset, in shared memory. */
export function loadTokens(reader: ChunkReader, blob: string): { tokens: SharedArrayBuffer } {
  const tokens = new SharedArrayBuffer(reader.blobSize(blob));
  const bytes = new Uint8Array(tokens);
  let at = 0;
  for (const chunk of reader.blobChunks(blob)) {
    bytes.set(chunk, at);
    at += chunk.length;
  }
  return { tokens };
}
