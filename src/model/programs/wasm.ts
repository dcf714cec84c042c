// Writes an element-wise Graph as a WebAssembly module that goes over memory once, where an engine goes over it for every node.
// Its operations round as IEEE 754 says, as an engine's do, so the bits are the same on every processor.
// The format is described at https://webassembly.github.io/spec/core/binary/index.html.

import { assert } from '../errors.ts';
import type { Graph } from './graph.ts';
import { leb128 } from './leb128.ts';

/** The codes of the operations on four float32 side by side, by ONNX's names. */
const OPERATIONS: Readonly<Partial<Record<string, number>>> = {
  Sqrt: 0xe3,
  Add: 0xe4,
  Sub: 0xe5,
  Mul: 0xe6,
  Div: 0xe7,
};
/** The bytes of one vector: four float32. */
export const WASM_VECTOR_BYTES = 16;

const [I32, F32, V128, FUNCTION, NO_RESULT, NO_BLOCK_TYPE] = [0x7f, 0x7d, 0x7b, 0x60, 0, 0x40];
const SECTION = { types: 1, imports: 2, functions: 3, exports: 7, code: 10 } as const;
const KIND = { function: 0, memory: 2 } as const;
const CODE = {
  loop: 0x03,
  end: 0x0b,
  branchIf: 0x0d,
  get: 0x20,
  set: 0x21,
  tee: 0x22,
  number: 0x41,
  less: 0x49,
  add: 0x6a,
};
const SIMD = 0xfd;
const [LOAD, STORE, SPLAT] = [0x00, 0x0b, 0x13];
/** The names of what the module imports and exports. */
export const WASM_NAMES = { module: 'gptd', memory: 'memory', run: 'run' } as const;

export interface WasmProgram {
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** The names of the inputs that are arrays, in the order of their addresses. */
  readonly vectors: readonly string[];
  readonly outputs: readonly string[];
  readonly scalars: readonly string[];
}

/**
 * Encodes a module that imports a memory and exports `run(sizeBytes, ...addresses of vectors, ...addresses of outputs,
 * ...scalars)`. The loop goes over whole vectors, the last of which may reach beyond `sizeBytes`. An output may have the address
 * of an input.
 */
export function encodeWasm(graph: Graph): WasmProgram {
  assert(graph.constants.length === 0, `${graph.name} has constants`);
  for (const { name, type } of graph.inputs) assert(type === 'float32', `${name} of ${graph.name} is of type ${type}`);
  const vectors = graph.inputs.filter(({ dims }) => dims.length > 0).map(({ name }) => name);
  const scalars = graph.inputs.filter(({ dims }) => dims.length === 0).map(({ name }) => name);
  const outputs = graph.outputs.map(({ name }) => name);
  // The parameters are the first locals; then come the position and a vector for every value.
  const [sizeBytes, addresses] = [0, 1];
  const numbers = addresses + vectors.length + outputs.length;
  const position = numbers + scalars.length;
  const values = [...scalars, ...vectors, ...graph.nodes.flatMap((node) => node.outputs)];
  const localOf = new Map<string, number>(values.map((name, i) => [name, position + 1 + i]));
  const value = (name: string): number[] => {
    const index = localOf.get(name);
    assert(index !== undefined, `${graph.name} has no value "${name}"`);
    return local('get', index);
  };
  const setValue = (name: string): number[] => local('set', localOf.get(name)!);
  const place = (address: number): number[] => [...local('get', position), ...local('get', address), CODE.add];

  const splats = scalars.flatMap((name, i) => [...local('get', numbers + i), SIMD, SPLAT, ...setValue(name)]);
  const loads = vectors.flatMap((name, i) => [...place(addresses + i), SIMD, LOAD, ...ALIGNED, ...setValue(name)]);
  const operations = graph.nodes.flatMap(({ op, inputs, outputs: [output] }) => {
    const code = OPERATIONS[op];
    assert(code !== undefined, `${op} of ${graph.name} is not element-wise`);
    return [...inputs.flatMap(value), SIMD, ...leb128(code), ...setValue(output)];
  });
  const stores = outputs.flatMap((name, i) => [
    ...place(addresses + vectors.length + i),
    ...value(name),
    ...[SIMD, STORE, ...ALIGNED],
  ]);
  const next = [...local('get', position), CODE.number, WASM_VECTOR_BYTES, CODE.add, ...local('tee', position)];
  const repeat = [...next, ...local('get', sizeBytes), CODE.less, CODE.branchIf, 0];
  const loop = [CODE.loop, NO_BLOCK_TYPE, ...loads, ...operations, ...stores, ...repeat, CODE.end];
  const locals = list([
    [1, I32],
    [...leb128(values.length), V128],
  ]);
  const body = [...locals, ...splats, ...loop, CODE.end];

  const parameters = [...Array.from({ length: numbers }, () => [I32]), ...scalars.map(() => [F32])];
  const { module, memory, run } = WASM_NAMES;
  const bytes = Uint8Array.from([
    ...[0x00, 0x61, 0x73, 0x6d, 1, 0, 0, 0],
    ...section(SECTION.types, [[FUNCTION, ...list(parameters), NO_RESULT]]),
    ...section(SECTION.imports, [[...text(module), ...text(memory), KIND.memory, 0, 0]]),
    ...section(SECTION.functions, [[0]]),
    ...section(SECTION.exports, [[...text(run), KIND.function, 0]]),
    ...section(SECTION.code, [[...leb128(body.length), ...body]]),
  ]);
  return { bytes, vectors, outputs, scalars };
}

/** The operands of a load or store: an alignment of 2^4 bytes and no offset. */
const ALIGNED = [4, 0];

const local = (what: 'get' | 'set' | 'tee', index: number): number[] => [CODE[what], ...leb128(index)];

const list = (items: readonly (readonly number[])[]): number[] => [...leb128(items.length), ...items.flat()];

const text = (name: string): number[] => [...leb128(name.length), ...new TextEncoder().encode(name)];

function section(id: number, items: readonly (readonly number[])[]): number[] {
  const content = list(items);
  return [id, ...leb128(content.length), ...content];
}
