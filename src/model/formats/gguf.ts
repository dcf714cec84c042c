// The GGUF format, version 3 (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md), as far as a GPT-2 needs it: the
// header with metadata and tensor infos, and blocks of Q8_0 and Q4_0. Dimensions are written innermost first. The tensors' bytes
// follow the header, each tensor at a multiple of the alignment.

import { assert } from '../errors.ts';
import { halfOf } from './half.ts';

export const GGUF_MAGIC = 0x46554747;
const GGUF_VERSION = 3;
const GGUF_ALIGNMENT = 32;

/** The tensor types that are written: the number of each type, and the values and bytes of one block. */
export const GGML_TYPES = {
  f32: { id: 0, blockValues: 1, blockBytes: 4 },
  f16: { id: 1, blockValues: 1, blockBytes: 2 },
  q4_0: { id: 2, blockValues: 32, blockBytes: 18 },
  q8_0: { id: 8, blockValues: 32, blockBytes: 34 },
} as const;
export type GgmlType = keyof typeof GGML_TYPES;

/** The numbers of the metadata's value types. */
const VALUE_TYPE = { uint32: 4, int32: 5, float32: 6, bool: 7, string: 8, array: 9 } as const;

export type GgufValue =
  | { readonly type: 'uint32' | 'float32'; readonly value: number }
  | { readonly type: 'bool'; readonly value: boolean }
  | { readonly type: 'string'; readonly value: string }
  | { readonly type: 'strings'; readonly value: readonly string[] }
  | { readonly type: 'int32s'; readonly value: readonly number[] };

export interface GgufTensor {
  readonly name: string;
  /** The dimensions, the outermost first, as everywhere except in the file. */
  readonly shape: readonly number[];
  readonly type: GgmlType;
}

export const aligned = (bytes: number): number => Math.ceil(bytes / GGUF_ALIGNMENT) * GGUF_ALIGNMENT;

/** Returns the bytes of a tensor without its padding. The tensor's rows must be whole blocks. */
export function ggufTensorBytes({ shape, type }: Pick<GgufTensor, 'shape' | 'type'>): number {
  const { blockValues, blockBytes } = GGML_TYPES[type];
  assert(shape.at(-1)! % blockValues === 0, `rows of ${shape.at(-1)} values are no whole blocks of ${blockValues}`);
  return (shape.reduce((product, length) => product * length, 1) / blockValues) * blockBytes;
}

/** Returns the header, padded to the alignment. The tensors' bytes must follow in the order of `tensors`, each padded. */
export function ggufHeader(
  metadata: readonly (readonly [string, GgufValue])[],
  tensors: readonly GgufTensor[],
): Uint8Array<ArrayBuffer> {
  const out = new ByteWriter();
  out.uint32(GGUF_MAGIC);
  out.uint32(GGUF_VERSION);
  out.uint64(tensors.length);
  out.uint64(metadata.length);
  for (const [key, value] of metadata) {
    out.string(key);
    writeValue(out, value);
  }
  let offset = 0;
  for (const tensor of tensors) {
    out.string(tensor.name);
    out.uint32(tensor.shape.length);
    for (const length of [...tensor.shape].reverse()) out.uint64(length);
    out.uint32(GGML_TYPES[tensor.type].id);
    out.uint64(offset);
    offset += aligned(ggufTensorBytes(tensor));
  }
  return out.bytes(GGUF_ALIGNMENT);
}

function writeValue(out: ByteWriter, value: GgufValue): void {
  switch (value.type) {
    case 'uint32':
      out.uint32(VALUE_TYPE.uint32);
      out.uint32(value.value);
      return;
    case 'float32':
      out.uint32(VALUE_TYPE.float32);
      out.float32(value.value);
      return;
    case 'bool':
      out.uint32(VALUE_TYPE.bool);
      out.uint8(value.value ? 1 : 0);
      return;
    case 'string':
      out.uint32(VALUE_TYPE.string);
      out.string(value.value);
      return;
    case 'strings':
      out.uint32(VALUE_TYPE.array);
      out.uint32(VALUE_TYPE.string);
      out.uint64(value.value.length);
      for (const item of value.value) out.string(item);
      return;
    case 'int32s':
      out.uint32(VALUE_TYPE.array);
      out.uint32(VALUE_TYPE.int32);
      out.uint64(value.value.length);
      for (const item of value.value) out.uint32(item);
      return;
    default:
      value satisfies never;
  }
}

const scaleValue = new Float32Array(1);
const scaleBits = new Uint32Array(scaleValue.buffer);

/** Writes a block's scale at `to`, in half precision, and returns the factor for the block's values. */
function putScale(view: DataView, { to, scale }: { readonly to: number; readonly scale: number }): number {
  scaleValue[0] = scale;
  view.setUint16(to, halfOf(scaleBits[0]), true);
  return scaleValue[0] === 0 ? 0 : 1 / scaleValue[0];
}

/** Returns blocks of 32 values: a half-precision scale, then 32 signed bytes. `values` are whole blocks. */
export function toQ8(values: Float32Array): Uint8Array<ArrayBuffer> {
  const { blockValues, blockBytes } = GGML_TYPES.q8_0;
  const out = new Uint8Array((values.length / blockValues) * blockBytes);
  const view = new DataView(out.buffer);
  for (let at = 0, to = 0; at < values.length; at += blockValues, to += blockBytes) {
    let largest = 0;
    for (let i = 0; i < blockValues; i++) largest = Math.max(largest, Math.abs(values[at + i]));
    const inverse = putScale(view, { to, scale: largest / 127 });
    for (let i = 0; i < blockValues; i++) view.setInt8(to + 2 + i, Math.round(values[at + i] * inverse));
  }
  return out;
}

/**
 * Returns blocks of 32 values: a half-precision scale, then 16 bytes. Value i has the low half of byte i, and value 16 + i has
 * the high half. The value that is farthest from zero becomes -8, so the scale has the opposite sign. `values` are whole blocks.
 */
export function toQ4(values: Float32Array): Uint8Array<ArrayBuffer> {
  const { blockValues, blockBytes } = GGML_TYPES.q4_0;
  const out = new Uint8Array((values.length / blockValues) * blockBytes);
  const view = new DataView(out.buffer);
  const half = blockValues / 2;
  for (let at = 0, to = 0; at < values.length; at += blockValues, to += blockBytes) {
    let farthest = 0;
    for (let i = 0; i < blockValues; i++) {
      if (Math.abs(values[at + i]) > Math.abs(farthest)) farthest = values[at + i];
    }
    const inverse = putScale(view, { to, scale: farthest === 0 ? 0 : farthest / -8 });
    const code = (i: number): number => Math.min(15, Math.max(0, Math.round(values[at + i] * inverse) + 8));
    for (let i = 0; i < half; i++) out[to + 2 + i] = code(i) | (code(half + i) << 4);
  }
  return out;
}

/** Collects little-endian bytes in a buffer that grows. */
class ByteWriter {
  #buffer = new Uint8Array(1 << 16);
  #view = new DataView(this.#buffer.buffer);
  #length = 0;
  readonly #utf8 = new TextEncoder();

  uint8(value: number): void {
    const at = this.#take(1);
    this.#view.setUint8(at, value);
  }

  uint32(value: number): void {
    const at = this.#take(4);
    this.#view.setUint32(at, value, true);
  }

  float32(value: number): void {
    const at = this.#take(4);
    this.#view.setFloat32(at, value, true);
  }

  uint64(value: number): void {
    const at = this.#take(8);
    this.#view.setBigUint64(at, BigInt(value), true);
  }

  string(text: string): void {
    const bytes = this.#utf8.encode(text);
    this.uint64(bytes.length);
    const at = this.#take(bytes.length);
    this.#buffer.set(bytes, at);
  }

  bytes(alignment: number): Uint8Array<ArrayBuffer> {
    return this.#buffer.slice(0, Math.ceil(this.#length / alignment) * alignment);
  }

  /** Makes room for `count` bytes and for the padding after them, if needed in a new buffer. Returns the place of the bytes. */
  #take(count: number): number {
    const at = this.#length;
    this.#length += count;
    if (this.#length + GGUF_ALIGNMENT > this.#buffer.length) {
      const grown = new Uint8Array(2 * this.#buffer.length + count);
      grown.set(this.#buffer.subarray(0, at));
      this.#buffer = grown;
      this.#view = new DataView(grown.buffer);
    }
    return at;
  }
}
