// The ONNX Runtime engine. Each program is a session, and its operators run one after the other. Inputs are read in place, and
// given outputs are written in place.
// Sessions are the package's native ones. The package's own wrapper puts every run into a turn of the event loop of its own,
// though a run blocks its thread until it is done (docs/decisions/0014).
// After a run the binding copies every output, given ones too: at 124M that cost a quarter of a training step, most of it in page
// faults. It copies them in order and stops with an error at the first one that is no tensor. So a run that is given all outputs
// asks for an empty sequence first, and takes the binding's error for the end of the run. Small outputs are copied, as the error
// costs more.

import os from 'node:os';
import { createRequire } from 'node:module';
import ort from 'onnxruntime-node';
import { binding, initOrt, type Binding } from 'onnxruntime-node/dist/binding.js';
import { GptdError } from '../../model/errors.ts';
import { encodeOnnxBeside } from '../../model/programs/onnx.ts';
import type { Graph } from '../../model/programs/graph.ts';
import type { CompileOptions, Engine, Program, Tensor, Tensors } from './engine.ts';

const { version } = createRequire(import.meta.url)('onnxruntime-node/package.json') as { version: string };

/**
 * Kernels are chosen by the processor's instruction sets. Node does not show those, so the processor's model name stands for
 * them.
 */
const processor = `${process.arch}/${os.cpus()[0]?.model.trim() ?? 'unknown'}`;

function toOrt({ data, dims }: Tensor): ort.Tensor {
  if (data instanceof Float32Array) return new ort.Tensor('float32', data, dims);
  if (data instanceof BigInt64Array) return new ort.Tensor('int64', data, dims);
  return new ort.Tensor('uint8', data, dims);
}

/**
 * A program's second thread stays awake for a moment between two products of one run, and goes to sleep when the run ends. After
 * that it would be in the way of the next program, which has a second thread of its own.
 */
const AWAKE_IN_RUNS = { intra_op: { allow_spinning: '1', spin_duration_us: '50' }, force_spinning_stop: '1' };

/** The name of the output that is no tensor, and the error that the binding throws for it after the run. */
const NO_TENSOR = 'gptd.no_tensor';
const NO_TENSOR_MESSAGE = 'Non tensor type is temporarily not supported.';

/** Copying this many bytes takes about as long as the error, 9 us. */
const COPIED_BYTES_MAX = 64 * 1024;

const bytesOf = (tensors: Tensors): number =>
  Object.values(tensors).reduce((sum, { data }) => sum + data.byteLength, 0);

const mapTensors = (tensors: Tensors): Record<string, ort.Tensor> =>
  Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, toOrt(tensor)]));

export const onnxEngine: Engine = {
  name: 'onnx',
  backend: 'cpu',
  version,
  fingerprint: `onnxruntime ${version} ${processor}`,
  writesInPlace: true,

  compile: (graph: Graph, options: CompileOptions = {}) => promised(() => programOf(load(graph, options), graph)),
};

/** Calls `work` at once. The promise resolves to what it returns and rejects with what it throws. */
const promised = <T>(work: () => T): Promise<T> => new Promise((resolve) => resolve(work()));

function programOf(session: Binding.InferenceSession, { outputs }: Graph): Program {
  const outputNames = outputs.map(({ name }) => name as string);
  const run = (inputs: Tensors, into: Tensors): Record<string, Float32Array> => {
    const written = mapTensors(into);
    if (bytesOf(into) > COPIED_BYTES_MAX && outputNames.every((name) => Object.hasOwn(into, name))) {
      runInPlace(session, mapTensors(inputs), { [NO_TENSOR]: null, ...written });
      return {};
    }
    const fetches = Object.fromEntries(outputNames.map((name) => [name, written[name] ?? null]));
    const results = session.run(mapTensors(inputs), fetches, {});
    const own = outputNames.filter((name) => !Object.hasOwn(into, name));
    return Object.fromEntries(own.map((name) => [name, results[name].data as Float32Array]));
  };
  return {
    run: (inputs, into = {}) => promised(() => run(inputs, into)),
    release: () => promised(() => session.dispose()),
  };
}

function load(graph: Graph, { threadCount = 1 }: CompileOptions): Binding.InferenceSession {
  const { model, beside } = encodeOnnxBeside(graph, { emptySequence: NO_TENSOR });
  try {
    initOrt();
    const session = new binding.InferenceSession();
    session.loadModel(model.buffer as ArrayBuffer, model.byteOffset, model.byteLength, {
      executionProviders: ['cpu'],
      executionMode: 'sequential',
      graphOptimizationLevel: 'all',
      intraOpNumThreads: threadCount,
      interOpNumThreads: 1,
      logSeverityLevel: 3,
      externalData: beside,
      extra: { session: AWAKE_IN_RUNS },
    });
    return session;
  } catch (error) {
    throw new GptdError('engine_failed', `ONNX Runtime cannot compile the program ${graph.name}.`, { cause: error });
  }
}

/** Runs a session whose first output is NO_TENSOR: every other output is written in place and none is copied. */
function runInPlace(
  session: Binding.InferenceSession,
  feeds: Record<string, ort.Tensor>,
  fetches: Record<string, ort.Tensor | null>,
): void {
  try {
    session.run(feeds, fetches, {});
  } catch (error) {
    if (!(error instanceof Error && error.message === NO_TENSOR_MESSAGE)) throw error;
  }
}
