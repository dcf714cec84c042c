// Shows where the time of a training step goes. One stage holds the whole model. ONNX Runtime's profiler times its programs, and
// the clock times what follows the backward pass: the gradient's norm and AdamW. The time that is missing in the sum is the
// stage's own JavaScript, the engine's calls and the copies between them.

import { Buffer } from 'node:buffer';
import { mkdtempSync, readFileSync, readdirSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import ort from 'onnxruntime-node';
import { trainingShape } from '../dist/daemon/training/shape.js';
import { initialTensors } from '../dist/model/init.js';
import { encodeOnnxInPieces } from '../dist/model/programs/onnx.js';
import { trainingStage } from './stage.js';

const PRODUCTS = new Set(['Gemm', 'MatMul', 'FusedMatMul', 'FusedGemm']);
const MOVES = new Set(['Transpose', 'Reshape', 'Split', 'Concat', 'Gather', 'GatherElements', 'Cast']);

/** Returns what a node of a program counts as. What the head's programs do beside products counts as the loss. */
function kindOf(program, op) {
  if (program.startsWith('head')) return PRODUCTS.has(op) ? 'matmul' : 'loss';
  if (op === 'FusedMatMul' || op === 'Softmax') return 'attention';
  if (PRODUCTS.has(op)) return 'matmul';
  return MOVES.has(op) ? 'copies' : 'elementwise';
}

/** Makes an engine that times every node of its programs. `take()` returns the microseconds by kind and ends the profiling. */
function profilingEngine(folder) {
  const sessions = [];
  const compile = async (graph, { threadCount = 1 } = {}) => {
    const profileFilePrefix = path.join(folder, String(sessions.length));
    const { pieces } = encodeOnnxInPieces(graph, { weights: new Set(), piecesOf: () => [] });
    const session = await ort.InferenceSession.create(Buffer.concat([...pieces]), {
      intraOpNumThreads: threadCount,
      executionMode: 'sequential',
      graphOptimizationLevel: 'all',
      enableProfiling: true,
      profileFilePrefix,
      logSeverityLevel: 3,
    });
    sessions.push({ session, program: graph.name, profileFilePrefix });
    const toOrt = ({ data, dims }) => {
      const type = { Float32Array: 'float32', BigInt64Array: 'int64', Uint8Array: 'uint8' }[data.constructor.name];
      return new ort.Tensor(type, data, dims);
    };
    const all = (tensors) => Object.fromEntries(Object.entries(tensors).map(([name, tensor]) => [name, toOrt(tensor)]));
    return {
      run: async (inputs, into = {}) => {
        await session.run(all(inputs), all(into));
        return {};
      },
      release: () => session.release(),
    };
  };
  const take = () => {
    const kinds = {};
    for (const { session, program, profileFilePrefix } of sessions) {
      session.endProfiling();
      const file = readdirSync(folder).find((name) => path.join(folder, name).startsWith(`${profileFilePrefix}_`));
      const nodes = JSON.parse(readFileSync(path.join(folder, file), 'utf8')).filter(
        ({ cat, args }) => cat === 'Node' && args?.op_name !== undefined,
      );
      // There are two equal steps. The first one touches memory for the first time, and does not count.
      for (const { dur, args } of nodes.slice(nodes.length / 2)) {
        const kind = kindOf(program, args.op_name);
        kinds[kind] = (kinds[kind] ?? 0) + dur;
      }
    }
    return kinds;
  };
  return { engine: { name: 'onnx', backend: 'cpu', version: '', fingerprint: '', compile }, take };
}

/** Trains two steps on one thread. Resolves to each kind's share of the second step's time in program nodes and the optimizer. */
export async function profileStep({ vocab, context: T, width, heads, layers, batch, modelContext = T }) {
  const config = {
    vocab_size: vocab,
    context_length: modelContext,
    emb_dim: width,
    n_heads: heads,
    n_layers: layers,
    drop_rate: 0,
    qkv_bias: false,
    tie_weights: false,
  };
  const tensors = new Map();
  for (const { name, data } of initialTensors(config, { seed: 1, scheme: 'gpt2' })) tensors.set(name, data);
  const { microBatchSize } = trainingShape({ batchSize: batch, contextLength: T }, modelContext);
  const folder = mkdtempSync(path.join(tmpdir(), 'gptd-profile-'));
  const { engine, take } = profilingEngine(folder);
  const shape = { batchSize: batch, microBatchSize, contextLength: T };
  const stage = trainingStage(engine, { config, tensors, ...shape });
  await stage.step(1);
  const { optimizerMs } = await stage.step(2);
  const kinds = { ...take(), optimizer: 1000 * optimizerMs };
  await stage.close();
  rmSync(folder, { recursive: true });
  const total = Object.values(kinds).reduce((sum, microseconds) => sum + microseconds, 0);
  return Object.entries(kinds)
    .sort(([, a], [, b]) => b - a)
    .map(([kind, microseconds]) => ({ kind, share: microseconds / total }));
}
