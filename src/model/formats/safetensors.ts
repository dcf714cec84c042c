// The safetensors format (https://github.com/huggingface/safetensors#format): a 64-bit little-endian length, a JSON
// header of that length, then the tensors' bytes without gaps. Headers come from strangers, so every number in them is
// checked against the size of the file before anything is read. The callers fetch and store the bytes.

import { GptdError } from '../errors.ts';

/** A longer header is refused; the header of GPT-2 XL takes 70 KB. Parsing never needs more than this and 8 bytes more. */
export const SAFETENSORS_HEADER_BYTES_MAX = 1 << 20;
export const SAFETENSORS_TENSORS_MAX = 8192;
const SAFETENSORS_DIMENSIONS_MAX = 8;

const LENGTH_BYTES = 8;

/** The bytes of a value, for every type of the format. Only F32, F16 and BF16 can become weights. */
const DTYPE_BYTES = {
  BOOL: 1,
  U8: 1,
  I8: 1,
  F8_E5M2: 1,
  F8_E4M3: 1,
  I16: 2,
  U16: 2,
  F16: 2,
  BF16: 2,
  I32: 4,
  U32: 4,
  F32: 4,
  F64: 8,
  I64: 8,
  U64: 8,
} as const;
export type SafetensorsDtype = keyof typeof DTYPE_BYTES;

/** Whether values of the type can become weights. */
export const isWeightDtype = (dtype: SafetensorsDtype): dtype is 'F32' | 'F16' | 'BF16' =>
  dtype === 'F32' || dtype === 'F16' || dtype === 'BF16';

export interface SafetensorsTensor {
  readonly name: string;
  readonly dtype: SafetensorsDtype;
  readonly shape: readonly number[];
  /** The tensor takes the bytes [begin, end) of the file. */
  readonly begin: number;
  readonly end: number;
}

export interface SafetensorsHeader {
  /** The tensors in the order of their bytes. */
  readonly tensors: readonly SafetensorsTensor[];
  readonly metadata: Readonly<Record<string, string>>;
  /** The position of the first tensor's first byte in the file. */
  readonly dataStart: number;
}

/**
 * Parses the beginning of a file of `fileBytes` bytes. `prefix` is the file's first bytes, at least as many as the
 * header takes: min(fileBytes, SAFETENSORS_HEADER_BYTES_MAX + 8) always suffice. Throws `corrupt` for a header that
 * breaks the format, whose offsets leave the file, overlap or leave gaps, or that is past the limits above.
 */
export function parseSafetensorsHeader(
  prefix: Uint8Array,
  { fileBytes }: { readonly fileBytes: number },
): SafetensorsHeader {
  // 1. Read the length.
  if (fileBytes < LENGTH_BYTES || prefix.length < LENGTH_BYTES) {
    throw corrupt(
      `The file has ${Math.min(fileBytes, prefix.length)} bytes: a safetensors file begins with a length of 8 bytes.`,
    );
  }
  const view = new DataView(prefix.buffer, prefix.byteOffset, prefix.byteLength);
  const headerBytes = view.getUint32(4, true) * 2 ** 32 + view.getUint32(0, true);
  if (headerBytes > SAFETENSORS_HEADER_BYTES_MAX) {
    throw corrupt(`The header has ${headerBytes} bytes: it may have at most ${SAFETENSORS_HEADER_BYTES_MAX}.`);
  }
  const dataStart = LENGTH_BYTES + headerBytes;
  if (dataStart > fileBytes || dataStart > prefix.length) {
    throw corrupt(
      `The header ends at byte ${dataStart}, but there are only ${Math.min(fileBytes, prefix.length)} bytes.`,
    );
  }

  // 2. Parse the JSON.
  const header = parseJson(prefix.subarray(LENGTH_BYTES, dataStart));
  if (!isRecord(header)) throw corrupt('The header is not a JSON object.');
  const { __metadata__: metadata = {}, ...entries } = header;
  if (!isRecord(metadata) || !Object.values(metadata).every((value) => typeof value === 'string')) {
    throw corrupt('__metadata__ must map strings to strings.');
  }
  const names = Object.keys(entries);
  if (names.length > SAFETENSORS_TENSORS_MAX) {
    throw corrupt(`The file has ${names.length} tensors: it may have at most ${SAFETENSORS_TENSORS_MAX}.`);
  }

  // 3. Check each tensor by itself, then that all tensors together cover the data.
  const dataBytes = fileBytes - dataStart;
  const tensors = names
    .map((name) => parseTensor(entries[name], { name, dataStart, dataBytes }))
    .sort((a, b) => a.begin - b.begin || a.end - b.end);
  let at = dataStart;
  for (const { name, begin, end } of tensors) {
    if (begin !== at) {
      throw corrupt(
        `Tensor ${quoted(name)} begins at byte ${begin} of the file, where the one before it ends at ${at}.`,
      );
    }
    at = end;
  }
  if (at !== fileBytes) throw corrupt(`The tensors end at byte ${at}, but the file has ${fileBytes} bytes.`);
  return { tensors, metadata: metadata as Record<string, string>, dataStart };
}

function parseJson(bytes: Uint8Array): unknown {
  try {
    return JSON.parse(new TextDecoder('utf-8', { fatal: true }).decode(bytes));
  } catch (cause) {
    throw new GptdError('corrupt', 'The header is not JSON in UTF-8.', { cause });
  }
}

function parseTensor(
  entry: unknown,
  { name, dataStart, dataBytes }: { readonly name: string; readonly dataStart: number; readonly dataBytes: number },
): SafetensorsTensor {
  const fault = (what: string): GptdError => corrupt(`Tensor ${quoted(name)} ${what}.`);
  if (!isRecord(entry)) throw fault('is not described by an object');
  const { dtype, shape, data_offsets: offsets } = entry;
  if (typeof dtype !== 'string' || !Object.hasOwn(DTYPE_BYTES, dtype)) {
    throw fault(`has a dtype that is none of ${Object.keys(DTYPE_BYTES).join(', ')}`);
  }
  if (!Array.isArray(shape) || shape.length > SAFETENSORS_DIMENSIONS_MAX || !shape.every(isCount)) {
    throw fault(`has a shape that is not up to ${SAFETENSORS_DIMENSIONS_MAX} non-negative integers`);
  }
  if (!Array.isArray(offsets) || offsets.length !== 2 || !offsets.every(isCount)) {
    throw fault('has data_offsets that are not two non-negative integers');
  }
  const [begin, end] = offsets;
  if (begin > end || end > dataBytes) {
    throw fault(`lies at ${begin} to ${end} of the data, which has ${dataBytes} bytes`);
  }
  // A rounded product is above 2^53, so it cannot equal the length of a range inside the file.
  const bytes = shape.reduce((product, length) => product * length, DTYPE_BYTES[dtype as SafetensorsDtype]);
  if (bytes !== end - begin) {
    throw fault(`of shape (${shape.join(', ')}) and type ${dtype} needs ${bytes} bytes but has ${end - begin}`);
  }
  return { name, dtype: dtype as SafetensorsDtype, shape, begin: dataStart + begin, end: dataStart + end };
}

const corrupt = (message: string): GptdError => new GptdError('corrupt', message);
const quoted = (name: string): string => JSON.stringify(name.length > 100 ? `${name.slice(0, 100)}…` : name);
const isRecord = (value: unknown): value is Record<string, unknown> =>
  typeof value === 'object' && value !== null && !Array.isArray(value);
const isCount = (value: unknown): value is number => Number.isSafeInteger(value) && (value as number) >= 0;

/**
 * Returns the values of a tensor as floats in new memory. Throws `corrupt` for a type other than F32, F16 or BF16, and for a
 * length that is not a whole number of values. The machine must be little-endian, like the format.
 */
export function toFloat32(bytes: Uint8Array, dtype: SafetensorsDtype): Float32Array<ArrayBuffer> {
  if (!isWeightDtype(dtype)) {
    throw corrupt(`Values of type ${dtype} cannot be weights: the type must be F32, F16 or BF16.`);
  }
  if (bytes.length % DTYPE_BYTES[dtype] !== 0) {
    throw corrupt(`${bytes.length} bytes are no whole number of ${dtype} values.`);
  }
  // The bytes may begin anywhere in their buffer, so a copy aligns them.
  const { buffer } = new Uint8Array(bytes);
  if (dtype === 'F32') return new Float32Array(buffer);
  const halves = new Uint16Array(buffer);
  const out = new Float32Array(halves.length);
  const bits = new Uint32Array(out.buffer);
  if (dtype === 'BF16') {
    for (let i = 0; i < halves.length; i++) bits[i] = halves[i] << 16;
    return out;
  }
  for (let i = 0; i < halves.length; i++) {
    const half = halves[i];
    const exponent = (half >>> 10) & 0x1f;
    const mantissa = half & 0x3ff;
    if (exponent === 0) {
      out[i] = (half & 0x8000 ? -1 : 1) * mantissa * 2 ** -24;
    } else {
      // The exponent 31, or 255 in f32, marks infinities and NaN. Other exponents move from bias 15 to bias 127.
      bits[i] = ((half & 0x8000) << 16) | ((exponent === 31 ? 255 : exponent + 112) << 23) | (mantissa << 13);
    }
  }
  return out;
}

/**
 * Returns the beginning of a file that holds `tensors` in this order: the length and the header, padded with spaces to a multiple
 * of 8 bytes. The tensors' bytes must follow without gaps.
 */
export function safetensorsHeader(
  tensors: readonly Pick<SafetensorsTensor, 'name' | 'dtype' | 'shape'>[],
  metadata: Readonly<Record<string, string>>,
): Uint8Array {
  const entries: [string, unknown][] = Object.keys(metadata).length === 0 ? [] : [['__metadata__', metadata]];
  let at = 0;
  for (const { name, dtype, shape } of tensors) {
    const begin = at;
    at += shape.reduce((product, length) => product * length, DTYPE_BYTES[dtype]);
    entries.push([name, { dtype, shape, data_offsets: [begin, at] }]);
  }
  const json = new TextEncoder().encode(JSON.stringify(Object.fromEntries(entries)));
  const headerBytes = Math.ceil(json.length / 8) * 8;
  const out = new Uint8Array(LENGTH_BYTES + headerBytes).fill(0x20);
  new DataView(out.buffer).setBigUint64(0, BigInt(headerBytes), true);
  out.set(json, LENGTH_BYTES);
  return out;
}
