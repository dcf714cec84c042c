// An element-wise program as one loop of WebAssembly, which works only on memory of its own. Arrays that it updates again and
// again stay in that memory, as the policy in memory/reuse.ts wants it. Others are copied through it in pieces that fit in the
// processor's cache. Engines read and write both as they do all arrays.

import { assert } from '../../model/errors.ts';
import type { Graph } from '../../model/programs/graph.ts';
import { encodeWasm, WASM_NAMES, WASM_VECTOR_BYTES, type WasmProgram } from '../../model/programs/wasm.ts';

/** Declares what this file uses of the global, which the types of Node leave out. */
declare const WebAssembly: {
  readonly Module: new (bytes: Uint8Array) => object;
  readonly Memory: new (size: { readonly initial: number }) => { readonly buffer: ArrayBuffer };
  readonly Instance: new (module: object, imports: object) => { readonly exports: Readonly<Record<string, unknown>> };
};

const PAGE_BYTES = 65536;
const MEMORY_BYTES_MAX = 65536 * PAGE_BYTES;
/** Arrays begin at cache lines. */
const ALIGNMENT_BYTES = 64;
/**
 * The elements that the module takes at once. It would write past the end of an array with a rest, so a rest goes through pieces.
 */
const VECTOR_LENGTH = WASM_VECTOR_BYTES / 4;
/** The elements of a piece. A quarter of them takes a tenth longer: see bench/LOG.md. */
const PIECE_LENGTH = 32768;
const PIECE_BYTES = 4 * PIECE_LENGTH;

type Arrays = Readonly<Record<string, Float32Array>>;

interface Memory {
  readonly buffer: ArrayBuffer;
  readonly run: (sizeBytes: number, ...addressesAndScalars: readonly number[]) => void;
}

export class FusedProgram {
  readonly #program: WasmProgram;
  readonly #module: object;
  /** Holds the memories by their buffers, which are those of the arrays in them. */
  readonly #memories = new Map<ArrayBufferLike, Memory>();
  /** The memory for arrays that are in none of these, made when first needed. */
  #pieces: Memory | null = null;
  /** The bytes at the beginning of every memory, with a piece for each array of a run. */
  readonly #piecesBytes: number;

  constructor(graph: Graph) {
    this.#program = encodeWasm(graph);
    this.#module = new WebAssembly.Module(this.#program.bytes);
    this.#piecesBytes = (this.#program.vectors.length + this.#program.outputs.length) * PIECE_BYTES;
  }

  /**
   * Returns arrays of zeros, one for each length. A run updates arrays of one group where they are. The arrays cannot be moved to
   * another thread. A group above 4 GiB gets ordinary arrays.
   */
  allocate(groups: readonly (readonly number[])[]): Float32Array[][] {
    const arrays: Float32Array[][] = [];
    let together: (readonly number[])[] = [];
    let sizeBytes = this.#piecesBytes;
    const flush = (): void => {
      if (together.length > 0) arrays.push(...this.#arrays(together, sizeBytes));
      [together, sizeBytes] = [[], this.#piecesBytes];
    };
    for (const group of groups) {
      const groupBytes = group.reduce((sum, length) => sum + roomFor(length), 0);
      if (sizeBytes + groupBytes > MEMORY_BYTES_MAX) flush();
      together.push(group);
      sizeBytes += groupBytes;
    }
    flush();
    return arrays;
  }

  #arrays(groups: readonly (readonly number[])[], sizeBytes: number): Float32Array[][] {
    if (sizeBytes > MEMORY_BYTES_MAX) return groups.map((group) => group.map((length) => new Float32Array(length)));
    const { buffer } = this.#memory(sizeBytes);
    let end = this.#piecesBytes;
    return groups.map((group) =>
      group.map((length) => {
        const array = new Float32Array(buffer, end, length);
        end += roomFor(length);
        return array;
      }),
    );
  }

  #memory(sizeBytes: number): Memory {
    const memory = new WebAssembly.Memory({ initial: Math.ceil(sizeBytes / PAGE_BYTES) });
    const imports = { [WASM_NAMES.module]: { [WASM_NAMES.memory]: memory } };
    const { exports } = new WebAssembly.Instance(this.#module, imports);
    const made = { buffer: memory.buffer, run: exports[WASM_NAMES.run] as Memory['run'] };
    this.#memories.set(made.buffer, made);
    return made;
  }

  /** Runs the program over arrays of one length. None overlaps another, but an output may be an input. */
  run({ inputs, into, scalars }: { inputs: Arrays; into: Arrays; scalars: Readonly<Record<string, number>> }): void {
    const { vectors, outputs, scalars: names } = this.#program;
    const read = vectors.map((name) => inputs[name]);
    const written = outputs.map((name) => into[name]);
    const { length } = written[0];
    const isWhole = [...read, ...written].every((array) => array.length === length);
    assert(isWhole, 'arrays of an element-wise program differ in length');
    const { buffer, run } = this.#memories.get(written[0].buffer) ?? (this.#pieces ??= this.#memory(this.#piecesBytes));
    const numbers = names.map((name) => scalars[name]);
    for (let start = 0; start < length; start += PIECE_LENGTH) {
      const count = Math.min(PIECE_LENGTH, length - start);
      const isThere = (array: Float32Array): boolean => array.buffer === buffer && count % VECTOR_LENGTH === 0;
      const addresses = [...read, ...written].map((array, i) =>
        isThere(array) ? array.byteOffset + 4 * start : i * PIECE_BYTES,
      );
      const piece = (i: number): Float32Array => new Float32Array(buffer, addresses[i], count);
      for (const [i, array] of read.entries()) {
        if (!isThere(array)) piece(i).set(array.subarray(start, start + count));
      }
      run(4 * count, ...addresses, ...numbers);
      for (const [i, array] of written.entries()) {
        if (!isThere(array)) array.set(piece(read.length + i), start);
      }
    }
  }
}

const roomFor = (length: number): number => Math.ceil((4 * length) / ALIGNMENT_BYTES) * ALIGNMENT_BYTES;
