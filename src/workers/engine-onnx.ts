// The ONNX Runtime engine. One session a program, sequential. Inputs are read in place and given outputs are written in place.
// After a run the binding makes a copy of every output, also of those: at 124M that cost a quarter of a training step, most of
// it in page faults. It makes them in order and stops at the first that is no tensor; so a run whose outputs are all given asks
// for an empty sequence first, and takes the binding's complaint for its end. Small outputs are copied: the complaint costs more.

import os from 'node:os';
import { createRequire } from 'node:module';
import ort from 'onnxruntime-node';
import { GptdError } from '../model/errors.ts';
import { encodeOnnx } from '../model/onnx.ts';
import type { Graph } from '../model/graph.ts';
import type { CompileOptions, Engine, Program, Tensor, Tensors } from './engine.ts';

const { version } = createRequire(import.meta.url)('onnxruntime-node/package.json') as { version: string };

/** The instruction set that ONNX Runtime's kernels choose by; the model name stands for it as Node does not show the flags. */
const processor = `${process.arch}/${os.cpus()[0]?.model.trim() ?? 'unknown'}`;

function toOrt({ data, dims }: Tensor): ort.Tensor {
  if (data instanceof Float32Array) return new ort.Tensor('float32', data, dims);
  if (data instanceof BigInt64Array) return new ort.Tensor('int64', data, dims);
  return new ort.Tensor('uint8', data, dims);
}

/**
 * A program's second thread stays awake for a moment between two products of one run, and goes to sleep as the run ends: there
 * it would be in the way of the next program, whose second thread is another one.
 */
const AWAKE_IN_RUNS = { intra_op: { allow_spinning: '1', spin_duration_us: '50' }, force_spinning_stop: '1' };

/** The output that is no tensor, and what the binding says when it meets it, after the run. */
const NO_TENSOR = 'gptd.no_tensor';
const NO_TENSOR_MESSAGE = 'Non tensor type is temporarily not supported.';

/** About as long as a complaint takes, 9 us, a copy of so many bytes takes too. */
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

  async compile(graph: Graph, options: CompileOptions = {}): Promise<Program> {
    let session: ort.InferenceSession;
    try {
      session = await ort.InferenceSession.create(encodeOnnx(graph, { emptySequence: NO_TENSOR }), {
        executionProviders: ['cpu'],
        executionMode: 'sequential',
        graphOptimizationLevel: 'all',
        intraOpNumThreads: options.threadCount ?? 1,
        interOpNumThreads: 1,
        logSeverityLevel: 3,
        extra: { session: AWAKE_IN_RUNS },
      });
    } catch (error) {
      throw new GptdError('engine_failed', `ONNX Runtime cannot compile the program ${graph.name}.`, { cause: error });
    }
    const outputNames = graph.outputs.map(({ name }) => name as string);
    return {
      async run(inputs, into = {}) {
        const written = mapTensors(into);
        if (bytesOf(into) > COPIED_BYTES_MAX && outputNames.every((name) => Object.hasOwn(into, name))) {
          await runInPlace(session, mapTensors(inputs), { [NO_TENSOR]: null, ...written });
          return {};
        }
        const fetches = Object.fromEntries(outputNames.map((name) => [name, written[name] ?? null]));
        const outputs = await session.run(mapTensors(inputs), fetches);
        const reply: Record<string, Float32Array> = {};
        for (const name of outputNames) {
          if (!Object.hasOwn(into, name)) reply[name] = outputs[name].data as Float32Array;
        }
        return reply;
      },
      release: () => session.release(),
    };
  },
};

async function runInPlace(
  session: ort.InferenceSession,
  feeds: Record<string, ort.Tensor>,
  fetches: Record<string, ort.Tensor | null>,
): Promise<void> {
  try {
    await session.run(feeds, fetches);
  } catch (error) {
    if (!(error instanceof Error && error.message === NO_TENSOR_MESSAGE)) throw error;
  }
}
