// Files of token ids: little-endian uint16 ids one after the other, as nanoGPT keeps them, or the same after llm.c's header of
// 256 int32, of which the first three are a magic number, the version and the number of tokens.

import { GptdError } from '../errors.ts';

export const LLMC_HEADER_BYTES = 1024;
const LLMC_MAGIC = 20240520;
const LLMC_VERSION = 1;

interface TokenFile {
  /** The bytes of the header, 0 for a file without one. */
  readonly headerBytes: number;
  readonly tokenCount: number;
}

/**
 * Returns what a file of `fileBytes` bytes holds. `prefix` is the file's beginning; min(fileBytes, LLMC_HEADER_BYTES) bytes
 * suffice. Throws `invalid_spec` for a file that cannot be uint16 ids, and for a header that contradicts what follows it.
 */
export function readTokenFile(prefix: Uint8Array, { fileBytes }: { readonly fileBytes: number }): TokenFile {
  if (fileBytes % 2 !== 0) throw refused(`has ${fileBytes} bytes: uint16 ids need an even number`);
  const plain = { headerBytes: 0, tokenCount: fileBytes / 2 };
  if (fileBytes < LLMC_HEADER_BYTES) return plain;
  const header = new DataView(prefix.buffer, prefix.byteOffset, prefix.byteLength);
  if (header.getInt32(0, true) !== LLMC_MAGIC) return plain;
  const [version, promised] = [header.getInt32(4, true), header.getInt32(8, true)];
  if (version !== LLMC_VERSION) {
    throw refused(`has a header of version ${version}: version ${LLMC_VERSION} with uint16 ids was wanted`);
  }
  const tokenCount = (fileBytes - LLMC_HEADER_BYTES) / 2;
  if (promised !== tokenCount)
    throw refused(`has a header that promises ${promised} tokens and ${tokenCount} follow it`);
  return { headerBytes: LLMC_HEADER_BYTES, tokenCount };
}

export function llmcHeader(tokenCount: number): Uint8Array {
  const header = new Int32Array(LLMC_HEADER_BYTES / 4);
  header.set([LLMC_MAGIC, LLMC_VERSION, tokenCount]);
  return new Uint8Array(header.buffer);
}

const refused = (what: string): GptdError => new GptdError('invalid_spec', `A .bin file ${what}.`);
