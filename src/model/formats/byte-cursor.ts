// Reads the header of a large file from front to back without holding the file: a window of bytes moves along, and every read
// is checked against the file's end. Numbers are little-endian, as in GGUF, protobuf and safetensors.

import { GptdError } from '../errors.ts';

/** Returns the bytes [offset, offset + length) of the file. The caller asks for no bytes outside the file. */
export type ReadRange = (offset: number, length: number) => Uint8Array;

const WINDOW_BYTES = 1 << 20;
/** A longer string in a header is refused. */
const STRING_BYTES_MAX = 1 << 20;

export class ByteCursor {
  at = 0;
  readonly fileBytes: number;
  readonly #read: ReadRange;
  #window: Uint8Array = new Uint8Array();
  #start = 0;

  constructor(read: ReadRange, fileBytes: number) {
    this.#read = read;
    this.fileBytes = fileBytes;
  }

  /** Reads the next `length` bytes. Throws `corrupt` when the file ends before. */
  bytes(length: number): Uint8Array {
    const [from, to] = [this.at, this.at + length];
    if (to > this.fileBytes) {
      throw new GptdError('corrupt', `The file ends at byte ${this.fileBytes}, but ${to} bytes were announced.`);
    }
    if (from < this.#start || to > this.#start + this.#window.length) {
      this.#start = from;
      this.#window = this.#read(from, Math.min(Math.max(length, WINDOW_BYTES), this.fileBytes - from));
    }
    this.at = to;
    return this.#window.subarray(from - this.#start, to - this.#start);
  }

  skip(length: number): void {
    if (length > this.fileBytes - this.at) this.bytes(length);
    this.at += length;
  }

  view(length: number): DataView {
    const { buffer, byteOffset } = this.bytes(length);
    return new DataView(buffer, byteOffset, length);
  }

  uint32 = (): number => this.view(4).getUint32(0, true);

  uint64(): number {
    const value = Number(this.view(8).getBigUint64(0, true));
    if (!Number.isSafeInteger(value)) throw new GptdError('corrupt', `The number ${value} is too large for a header.`);
    return value;
  }

  text(length: number): string {
    if (length > STRING_BYTES_MAX) {
      throw new GptdError('corrupt', `A string has ${length} bytes: it may have at most ${STRING_BYTES_MAX}.`);
    }
    return new TextDecoder().decode(this.bytes(length));
  }

  /** Reads protobuf's variable-length integer. Negative numbers are not needed here and come out large. */
  varint(): number {
    let value = 0;
    for (let shift = 0; shift < 10; shift++) {
      const [byte] = this.bytes(1);
      value += (byte & 127) * 128 ** shift;
      if (byte < 128) return value;
    }
    throw new GptdError('corrupt', 'A number has more than ten bytes.');
  }
}
