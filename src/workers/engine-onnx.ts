// The ONNX Runtime engine. One session a program, sequential, without spinning threads; inputs are read in place, and a
// preallocated output is written in place (the binding copies it once more all the same, so ask for few and small ones).

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
      session = await ort.InferenceSession.create(encodeOnnx(graph), {
        executionProviders: ['cpu'],
        executionMode: 'sequential',
        graphOptimizationLevel: 'all',
        intraOpNumThreads: options.threadCount ?? 1,
        interOpNumThreads: 1,
        logSeverityLevel: 3,
        extra: { session: { intra_op: { allow_spinning: '0' } } },
      });
    } catch (error) {
      throw new GptdError('engine_failed', `ONNX Runtime cannot compile the program ${graph.name}.`, { cause: error });
    }
    const outputNames = graph.outputs.map(({ name }) => name as string);
    return {
      async run(inputs, into = {}) {
        const written = mapTensors(into);
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
