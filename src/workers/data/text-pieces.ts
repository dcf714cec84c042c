// The text of uploaded files in pieces that tokenizers may encode one by one: a piece ends where white space follows something
// else, which is where every tokenizer's pieces end too, so the ids are those of the whole text.

import { GptdError } from '../../model/errors.ts';
import type { ChunkReader } from '../store/reader.ts';
import type { TokenizeRequest } from './messages.ts';

/** This many bytes are decoded at a time; a piece is longer only where no white space comes. */
const PIECE_BYTES = 1 << 20;

interface TextPiece {
  readonly text: string;
  /** The bytes of the files that were read for the piece. */
  readonly bytes: number;
  /** The document's number, from 0 over all files: every text file is a document, and so is every line of a .jsonl file. */
  readonly document: number;
}

/** Throws `invalid_spec` for bytes that are not UTF-8 and for lines without a text. */
export function* textPieces(reader: ChunkReader, files: TokenizeRequest['files']): Generator<TextPiece> {
  let document = 0;
  for (const { digest, format } of files) {
    if (format === 'jsonl') {
      for (const piece of linePieces(reader, digest)) {
        yield { ...piece, document };
        document += 1;
      }
      continue;
    }
    for (const piece of filePieces(reader, digest)) yield { ...piece, document };
    document += 1;
  }
}

/** The blob's text as it is decoded, a piece of the blob at a time. */
function* decoded(reader: ChunkReader, digest: string): Generator<{ text: string; bytes: number }> {
  const decoder = new TextDecoder('utf-8', { fatal: true });
  const decode = (bytes?: Uint8Array): string => {
    try {
      return decoder.decode(bytes, { stream: bytes !== undefined });
    } catch (error) {
      throw new GptdError('invalid_spec', 'A data file is not UTF-8 text.', { cause: error });
    }
  };
  for (const chunk of reader.blobChunks(digest)) {
    for (let at = 0; at < chunk.length; at += PIECE_BYTES) {
      const bytes = chunk.subarray(at, at + PIECE_BYTES);
      yield { text: decode(bytes), bytes: bytes.length };
    }
  }
  yield { text: decode(), bytes: 0 };
}

function* filePieces(reader: ChunkReader, digest: string): Generator<{ text: string; bytes: number }> {
  let [rest, restBytes] = ['', 0];
  for (const { text, bytes } of decoded(reader, digest)) {
    const searchedTo = rest.length;
    rest += text;
    restBytes += bytes;
    const cut = lastBoundary(rest, searchedTo);
    if (cut === 0) continue;
    yield { text: rest.slice(0, cut), bytes: restBytes };
    [rest, restBytes] = [rest.slice(cut), 0];
  }
  if (rest !== '') yield { text: rest, bytes: restBytes };
}

/** Returns the last index, from `from` on, at which white space follows something else; 0 when there is none. */
function lastBoundary(text: string, from: number): number {
  for (let i = text.length - 1; i >= Math.max(1, from); i--) {
    if (isWhiteSpace(text.charCodeAt(i)) && !isWhiteSpace(text.charCodeAt(i - 1))) return i;
  }
  return 0;
}

/** The characters of Unicode's White_Space beyond ASCII. */
const EXOTIC = new Set([
  ...[0x85, 0xa0, 0x1680, 0x2028, 0x2029, 0x202f, 0x205f, 0x3000],
  ...Array.from({ length: 11 }, (_, i) => 0x2000 + i),
]);
const isWhiteSpace = (code: number): boolean => code === 0x20 || (code >= 0x09 && code <= 0x0d) || EXOTIC.has(code);

function* linePieces(reader: ChunkReader, digest: string): Generator<{ text: string; bytes: number }> {
  let [rest, line, pendingBytes] = ['', 0, 0];
  const textOf = (row: string): string | null => {
    line += 1;
    return row.trim() === '' ? null : lineText(row, line);
  };
  for (const { text, bytes } of decoded(reader, digest)) {
    pendingBytes += bytes;
    const rows = (rest + text).split('\n');
    rest = rows.pop()!;
    for (const row of rows) {
      const found = textOf(row);
      if (found === null) continue;
      yield { text: found, bytes: pendingBytes };
      pendingBytes = 0;
    }
  }
  const found = textOf(rest);
  if (found !== null) yield { text: found, bytes: pendingBytes };
}

function lineText(row: string, line: number): string {
  let parsed: unknown;
  try {
    parsed = JSON.parse(row);
  } catch (error) {
    throw new GptdError('invalid_spec', `Line ${line} of a .jsonl file is not JSON.`, { cause: error });
  }
  const field = (parsed as { text?: unknown } | null)?.text;
  if (typeof field !== 'string') {
    throw new GptdError('invalid_spec', `Line ${line} of a .jsonl file has no "text" field that is a string.`);
  }
  return field;
}
