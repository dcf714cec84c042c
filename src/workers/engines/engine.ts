// What executes programs. An engine compiles a Graph once and runs it many times on the calling thread; stages know only
// this interface. Which engine computes is a choice at start; see engines/choice.ts.

import type { Graph } from '../../model/programs/graph.ts';

/** An array with its shape. Engines read inputs in place: the caller keeps them unchanged until the run has ended. */
export interface Tensor {
  readonly data: Float32Array | BigInt64Array | Uint8Array;
  readonly dims: readonly number[];
}

export type Tensors = Readonly<Record<string, Tensor>>;

export interface Program {
  /**
   * Runs the program. `inputs` are borrowed for the call. The reply's arrays are new and belong to the caller, but for
   * those named in `into`: they are written in place and not part of the reply. A run that is given all of its outputs
   * copies and allocates nothing.
   */
  run(inputs: Tensors, into?: Tensors): Promise<Record<string, Float32Array>>;
  release(): Promise<void>;
}

export interface CompileOptions {
  /** Threads of one run, the calling one included. */
  readonly threadCount?: number;
}

export interface Engine {
  readonly name: 'onnx' | 'tensorflow';
  /** What the engine computes with: ONNX Runtime's `cpu`, TensorFlow.js's `node` or `wasm`. */
  readonly backend: 'cpu' | 'node' | 'wasm';
  readonly version: string;
  /** What decides the bits: engine, version, processor family. Equal fingerprints give equal results. */
  readonly fingerprint: string;
  /** Whether an output that is given as the memory of an input may be that input with parts of it written over. */
  readonly writesInPlace: boolean;
  compile(graph: Graph, options?: CompileOptions): Promise<Program>;
}
