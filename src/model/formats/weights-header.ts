// Reads what GGUF and ONNX files say about themselves, without their weights: metadata, tensors, names of inputs and outputs.
// Files come from strangers, so every length is checked against the file, and long lists are cut.

import { ByteCursor, type ReadRange } from './byte-cursor.ts';
import { GptdError } from '../errors.ts';
import { GGUF_MAGIC } from './gguf.ts';

export interface HeaderTensor {
  readonly name: string;
  readonly dtype: string;
  readonly shape: readonly number[];
}

export interface WeightsHeader {
  readonly tensors: readonly HeaderTensor[];
  readonly metadata: Readonly<Record<string, unknown>>;
}

const TENSORS_MAX = 65536;
const METADATA_MAX = 65536;
const ARRAY_ITEMS_MAX = 1 << 24;
const ARRAY_ITEMS_SHOWN = 8;
const DIMENSIONS_MAX = 8;

const corrupt = (message: string): GptdError => new GptdError('corrupt', message);

function atMost(count: number, max: number, what: string): number {
  if (count > max) throw corrupt(`The header announces ${count} ${what}: at most ${max} are read.`);
  return count;
}

// ---- GGUF --------------------------------------------------------------------------------------------------------------

const GGUF_TENSOR_TYPES: Readonly<Record<number, string>> = {
  0: 'F32',
  1: 'F16',
  2: 'Q4_0',
  3: 'Q4_1',
  6: 'Q5_0',
  7: 'Q5_1',
  8: 'Q8_0',
  10: 'Q2_K',
  11: 'Q3_K',
  12: 'Q4_K',
  13: 'Q5_K',
  14: 'Q6_K',
  30: 'BF16',
};

/** Reads the header of a GGUF file of version 2 or 3. Throws `corrupt` for a file that breaks the format. */
export function readGgufHeader(read: ReadRange, fileBytes: number): WeightsHeader {
  const cursor = new ByteCursor(read, fileBytes);
  if (cursor.uint32() !== GGUF_MAGIC) throw corrupt('The file does not begin with GGUF.');
  const version = cursor.uint32();
  if (version !== 2 && version !== 3) throw corrupt(`The GGUF version is ${version}: 2 and 3 are read.`);
  const tensorCount = atMost(cursor.uint64(), TENSORS_MAX, 'tensors');
  const valueCount = atMost(cursor.uint64(), METADATA_MAX, 'values');
  const metadata: Record<string, unknown> = {};
  for (let i = 0; i < valueCount; i++) {
    const key = cursor.text(cursor.uint64());
    metadata[key] = ggufValue(cursor, cursor.uint32());
  }
  const tensors = Array.from({ length: tensorCount }, () => {
    const name = cursor.text(cursor.uint64());
    const dimensions = atMost(cursor.uint32(), DIMENSIONS_MAX, 'dimensions');
    const shape = Array.from({ length: dimensions }, () => cursor.uint64()).reverse();
    const type = cursor.uint32();
    cursor.skip(8);
    return { name, dtype: GGUF_TENSOR_TYPES[type] ?? `type ${type}`, shape };
  });
  return { tensors, metadata };
}

function ggufValue(cursor: ByteCursor, type: number): unknown {
  switch (type) {
    case 0:
      return cursor.view(1).getUint8(0);
    case 1:
      return cursor.view(1).getInt8(0);
    case 2:
      return cursor.view(2).getUint16(0, true);
    case 3:
      return cursor.view(2).getInt16(0, true);
    case 4:
      return cursor.uint32();
    case 5:
      return cursor.view(4).getInt32(0, true);
    case 6:
      return cursor.view(4).getFloat32(0, true);
    case 7:
      return cursor.view(1).getUint8(0) !== 0;
    case 8:
      return cursor.text(cursor.uint64());
    case 9: {
      const itemType = cursor.uint32();
      if (itemType === 9) throw corrupt('An array of arrays is not read.');
      const count = atMost(cursor.uint64(), ARRAY_ITEMS_MAX, 'items');
      const first: unknown[] = [];
      for (let i = 0; i < count; i++) {
        const item = ggufValue(cursor, itemType);
        if (i < ARRAY_ITEMS_SHOWN) first.push(item);
      }
      return { count, first };
    }
    case 10:
    case 11:
      return cursor.uint64();
    case 12:
      return cursor.view(8).getFloat64(0, true);
    default:
      throw corrupt(`The value type ${type} is not one of GGUF's.`);
  }
}

// ---- ONNX --------------------------------------------------------------------------------------------------------------

const ONNX_TENSOR_TYPES: Readonly<Record<number, string>> = {
  1: 'F32',
  2: 'U8',
  3: 'I8',
  6: 'I32',
  7: 'I64',
  9: 'BOOL',
  10: 'F16',
  11: 'F64',
  16: 'BF16',
};

/**
 * Yields the fields of a protobuf message up to `end`. `value` is the value of a number, or else the length in bytes of the
 * field, which lies at [begin, end).
 */
function* fields(
  cursor: ByteCursor,
  end: number,
): Generator<{ readonly field: number; readonly value: number; readonly begin: number; readonly end: number }> {
  while (cursor.at < end) {
    const tag = cursor.varint();
    const field = Math.floor(tag / 8);
    const kind = tag % 8;
    if (field === 0 || (kind !== 0 && kind !== 1 && kind !== 2 && kind !== 5)) throw corrupt('The file is not ONNX.');
    if (kind === 0) {
      yield { field, value: cursor.varint(), begin: cursor.at, end: cursor.at };
      continue;
    }
    const length = kind === 2 ? cursor.varint() : kind === 1 ? 8 : 4;
    const begin = cursor.at;
    if (begin + length > end) throw corrupt(`A field of ${length} bytes at byte ${begin} leaves its message.`);
    yield { field, value: length, begin, end: begin + length };
    // The caller may have read any part of the field.
    cursor.at = begin + length;
  }
  if (cursor.at !== end) throw corrupt(`A message ends at byte ${cursor.at} instead of ${end}.`);
}

export function readOnnxHeader(read: ReadRange, fileBytes: number): WeightsHeader {
  const cursor = new ByteCursor(read, fileBytes);
  const tensors: HeaderTensor[] = [];
  const metadata: Record<string, unknown> = {};
  const names: Record<'inputs' | 'outputs', string[]> = { inputs: [], outputs: [] };
  let nodeCount = 0;
  let isModel = false;
  const text = (begin: number, length: number): string => {
    cursor.at = begin;
    return cursor.text(length);
  };
  const nameOf = (end: number): string => {
    for (const part of fields(cursor, end)) if (part.field === 1) return text(part.begin, part.value);
    return '';
  };
  const readGraph = (end: number): void => {
    for (const part of fields(cursor, end)) {
      if (part.field === 1) nodeCount += 1;
      else if (part.field === 5) tensors.push(readTensor(cursor, part.end, text));
      else if (part.field === 11) names.inputs.push(nameOf(part.end));
      else if (part.field === 12) names.outputs.push(nameOf(part.end));
      atMost(tensors.length + names.inputs.length + names.outputs.length, TENSORS_MAX, 'tensors');
    }
  };
  for (const part of fields(cursor, fileBytes)) {
    if (part.field === 1) metadata['ir_version'] = part.value;
    else if (part.field === 2) metadata['producer'] = text(part.begin, part.value);
    else if (part.field === 7) {
      isModel = true;
      readGraph(part.end);
    }
  }
  if (!isModel) throw corrupt('The file holds no ONNX graph.');
  return { tensors, metadata: { ...metadata, nodes: nodeCount, ...names } };
}

function readTensor(cursor: ByteCursor, end: number, text: (begin: number, length: number) => string): HeaderTensor {
  let name = '';
  let type = 0;
  const shape: number[] = [];
  for (const part of fields(cursor, end)) {
    if (part.field === 2) type = part.value;
    else if (part.field === 8) name = text(part.begin, part.value);
    else if (part.field === 1 && part.begin === part.end) shape.push(part.value);
    else if (part.field === 1) {
      while (cursor.at < part.end && shape.length <= DIMENSIONS_MAX) shape.push(cursor.varint());
    }
    atMost(shape.length, DIMENSIONS_MAX, 'dimensions');
  }
  return { name, dtype: ONNX_TENSOR_TYPES[type] ?? `type ${type}`, shape };
}
