// From uploaded data files to one array of token ids, in memory that the stages share. Text is decoded, encoded and counted in
// pieces of a megabyte, so the thread stays open to other work and a cancel takes effect between two. Files of token ids are
// uint16, little-endian: nanoGPT's, or llm.c's with its header of 256 int32.

import { GptdError } from '../../model/errors.ts';
import { LLMC_HEADER_BYTES, readTokenFile } from '../../model/formats/token-files.ts';
import { charAlphabet, createTokenizer } from '../../model/text/create-tokenizer.ts';
import type { TokenizerSpec } from '../../model/text/tokenizer.ts';
import type { ChunkReader } from '../store/reader.ts';
import type { TokenizedData, TokenizeProgress, TokenizeRequest } from './messages.ts';
import { textPieces } from './text-pieces.ts';

const UINT16_IDS_MAX = 65536;

/** Yields after every piece; the last one brings the dataset. Throws `invalid_spec` for data that cannot be read that way. */
export async function* tokenize(reader: ChunkReader, request: TokenizeRequest): AsyncGenerator<TokenizeProgress> {
  if (request.tokenizer === null) yield* tokenFiles(reader, request);
  else yield* textFiles(reader, { ...request, tokenizer: request.tokenizer });
}

async function* textFiles(
  reader: ChunkReader,
  { files, tokenizer: wanted, vocabSize }: TokenizeRequest & { tokenizer: NonNullable<TokenizeRequest['tokenizer']> },
): AsyncGenerator<TokenizeProgress> {
  if (files.some(({ format }) => format === 'tokens')) {
    throw new GptdError(
      'invalid_spec',
      'Files of token ids (.bin) need --tokenizer none: text files are .txt or .jsonl.',
    );
  }
  const fileBytes = files.reduce((sum, { digest }) => sum + reader.blobSize(digest), 0);
  const findsAlphabet = wanted.type === 'char' && wanted.alphabet === null;
  const totalBytes = findsAlphabet ? 2 * fileBytes : fileBytes;
  let doneBytes = 0;
  let spec = wanted as TokenizerSpec;
  if (findsAlphabet) {
    const characters = new Set<string>();
    for (const { text, bytes, document } of textPieces(reader, files)) {
      if (document > 0) characters.add('\n');
      for (const character of charAlphabet(text)) characters.add(character);
      doneBytes += bytes;
      yield { doneBytes, totalBytes, dataset: null };
    }
    spec = { type: 'char', alphabet: charAlphabet([...characters].join('')) };
  }
  const tokenizer = await createTokenizer(spec);
  if (tokenizer.vocabSize > vocabSize) {
    throw new GptdError(
      'invalid_spec',
      `The tokenizer has ${tokenizer.vocabSize} ids and the model a vocabulary of ${vocabSize}: the model needs at least as many.`,
    );
  }
  const wideTokens = vocabSize > UINT16_IDS_MAX;
  // The end-of-text token stands between two documents where the vocabulary has one, and a line break elsewhere.
  const separator =
    tokenizer.endOfText === null ? () => tokenizer.encode('\n') : () => Uint32Array.of(tokenizer.endOfText!);
  const parts: (Uint16Array | Uint32Array)[] = [];
  let [characterCount, byteCount, lastDocument] = [0, 0, 0];
  for (const { text, bytes, document } of textPieces(reader, files)) {
    for (; lastDocument < document; lastDocument++) parts.push(separator());
    const ids = tokenizer.encode(text);
    parts.push(wideTokens ? ids : Uint16Array.from(ids));
    characterCount += codePoints(text);
    byteCount += Buffer.byteLength(text);
    doneBytes += bytes;
    yield { doneBytes, totalBytes, dataset: null };
  }
  const tokenCount = parts.reduce((sum, part) => sum + part.length, 0);
  const tokens = new SharedArrayBuffer(tokenCount * (wideTokens ? 4 : 2));
  const ids = wideTokens ? new Uint32Array(tokens) : new Uint16Array(tokens);
  let at = 0;
  for (const part of parts) {
    ids.set(part, at);
    at += part.length;
  }
  const dataset: TokenizedData = { tokens, wideTokens, tokenCount, characterCount, byteCount, tokenizer: spec };
  yield { doneBytes: totalBytes, totalBytes, dataset };
}

function codePoints(text: string): number {
  let count = text.length;
  for (let i = 0; i + 1 < text.length; i++) {
    // A pair of surrogates is one character; its second half is skipped.
    if (text.charCodeAt(i) >>> 10 === 0x36 && text.charCodeAt(i + 1) >>> 10 === 0x37) {
      count -= 1;
      i += 1;
    }
  }
  return count;
}

function* tokenFiles(
  reader: ChunkReader,
  { files, vocabSize }: Pick<TokenizeRequest, 'files' | 'vocabSize'>,
): Generator<TokenizeProgress> {
  const bodies = files.map(({ digest, format }) => {
    if (format !== 'tokens') {
      throw new GptdError(
        'invalid_spec',
        'Text files need a tokenizer: gpt2, byte or char; "none" reads .bin files of ids.',
      );
    }
    return { digest, skipBytes: headerBytes(reader, digest), sizeBytes: reader.blobSize(digest) };
  });
  const totalBytes = bodies.reduce((sum, { sizeBytes, skipBytes }) => sum + sizeBytes - skipBytes, 0);
  const tokens = new SharedArrayBuffer(totalBytes);
  const bytes = new Uint8Array(tokens);
  const ids = new Uint16Array(tokens);
  let doneBytes = 0;
  for (const { digest, skipBytes } of bodies) {
    let left = skipBytes;
    for (const chunk of reader.blobChunks(digest)) {
      const body = chunk.subarray(left);
      left = Math.max(0, left - chunk.length);
      bytes.set(body, doneBytes);
      const checkedFrom = Math.floor(doneBytes / 2);
      doneBytes += body.length;
      checkIds(ids, { from: checkedFrom, to: Math.floor(doneBytes / 2), vocabSize });
      yield { doneBytes, totalBytes, dataset: null };
    }
  }
  const counts = { tokenCount: ids.length, characterCount: 0, byteCount: 0 };
  yield { doneBytes, totalBytes, dataset: { tokens, wideTokens: false, ...counts, tokenizer: null } };
}

function checkIds(
  ids: Uint16Array,
  { from, to, vocabSize }: { readonly from: number; readonly to: number; readonly vocabSize: number },
): void {
  for (let i = from; i < to; i++) {
    if (ids[i] < vocabSize) continue;
    throw new GptdError(
      'invalid_spec',
      `Token ${i} of the data is ${ids[i]}: the model's ids go from 0 to ${vocabSize - 1}.`,
    );
  }
}

function headerBytes(reader: ChunkReader, digest: string): number {
  const fileBytes = reader.blobSize(digest);
  const prefix = reader.readBlobRange({ hash: digest, offset: 0, length: Math.min(fileBytes, LLMC_HEADER_BYTES) });
  return readTokenFile(prefix, { fileBytes }).headerBytes;
}

/** Reads the token ids of a stored dataset into shared memory. */
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
