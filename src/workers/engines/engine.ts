// What executes programs. An engine compiles a Graph once and runs it many times on the calling thread; stages know only
// this interface. The engine is chosen at start: see engines/choice.ts.

import type { Graph } from '../../model/programs/graph.ts';

/** An array with its shape. Engines read inputs in place: the caller keeps them unchanged until the run has ended. */
export interface Tensor {
  readonly data: Float32Array | BigInt64Array | Uint8Array;
  readonly dims: readonly number[];
}

export type Tensors = Readonly<Record<string, Tensor>>;

export interface Program {
  /**
   * Runs the program. `inputs` are borrowed for the call. The returned arrays are new and belong to the caller. Outputs that
   * `into` names are written there and not returned: a run that is given all of its outputs returns no arrays.
   */
  run(inputs: Tensors, into?: Tensors): Promise<Record<string, Float32Array>>;
  release(): Promise<void>;
}

export interface CompileOptions {
  /** The number of threads of one run, the calling thread included. */
  readonly threadCount?: number;
}

export interface Engine {
  readonly name: 'onnx' | 'tensorflow';
  /** What the engine computes with: ONNX Runtime's `cpu`, TensorFlow.js's `node` or `wasm`. */
  readonly backend: 'cpu' | 'node' | 'wasm';
  readonly version: string;
  /** All that decides the bits, such as engine, version and processor. Equal fingerprints give equal results. */
  readonly fingerprint: string;
  /** Whether an output may be given the memory of an input: the run then overwrites parts of the input and leaves the rest. */
  readonly writesInPlace: boolean;
  compile(graph: Graph, options?: CompileOptions): Promise<Program>;
}
