// This is the entry of the self-test's thread. It checks the model's arithmetic on the engine that was asked for, with a model so
// small that each check takes less than a second. It replies what it measured; selftest.ts knows what is good enough.

import { workerData } from 'node:worker_threads';
import { attention } from '../model/programs/attention.ts';
import type { GptConfig } from '../model/config.ts';
import { GraphBuilder } from '../model/programs/graph.ts';
import { initialTensors } from '../model/init.ts';
import { PURPOSE, uniform } from '../model/random/philox.ts';
import { loadThreadEngine } from '../workers/engines/choice.ts';
import type { MicroBatch } from '../workers/training/messages.ts';
import { SELFTEST_THREAD, type SelftestCalls, type SelftestRequest } from './selftest-messages.ts';
import type { WorkerSettings } from '../workers/settings.ts';
import { replying } from '../workers/reply.ts';
import { TrainStage } from '../workers/training/stage.ts';

const CONFIG: GptConfig = {
  vocab_size: 31,
  context_length: 8,
  emb_dim: 16,
  n_heads: 2,
  n_layers: 2,
  drop_rate: 0,
  qkv_bias: true,
  tie_weights: false,
};
const SEED = 123;
const [B, T] = [2, 7];
/** A tensor moves so far along its gradient in each direction: far enough for float32, near enough for a straight line. */
const MOVE = 0.02;

const engine = loadThreadEngine(workerData as WorkerSettings);
engine.catch(() => undefined);

/** Returns random numbers in [-1, 1). */
const noise = (length: number, step: number): Float32Array =>
  Float32Array.from({ length }, (_, index) => 2 * uniform({ seed: SEED, purpose: PURPOSE.sampling, step, index }) - 1);

async function checkAttention(): Promise<SelftestCalls['attention'][1]> {
  const { emb_dim: D, n_heads: H } = CONFIG;
  const g = new GraphBuilder('self-test attention');
  const dims = [B * T, 3 * D];
  const attended = attention(g, g.input('qkv', dims), { shape: { B, T, H, D }, drop: null });
  g.output('context', attended.context);
  g.output('probabilities', attended.probabilities);
  const program = await (await engine).compile(g.build());
  const qkv = noise(B * T * 3 * D, 1).map((value) => 4 * value);
  const before = await program.run({ qkv: { data: qkv, dims } });
  // From the middle of each sequence on, the rows are replaced by others.
  const middle = Math.ceil(T / 2);
  const other = noise(qkv.length, 2);
  const isAhead = (row: number): boolean => row % T >= middle;
  const changed = qkv.map((value, i) => (isAhead(Math.floor(i / (3 * D))) ? other[i] : value));
  const after = await program.run({ qkv: { data: changed, dims } });
  await program.release();

  let [sumError, weightAhead, leak] = [0, 0, 0];
  const { probabilities } = before;
  for (let row = 0; row < B * H * T; row++) {
    const values = probabilities.subarray(row * T, (row + 1) * T);
    sumError = Math.max(sumError, Math.abs(values.reduce((sum, value) => sum + value, 0) - 1));
    for (const value of values.subarray((row % T) + 1)) weightAhead = Math.max(weightAhead, Math.abs(value));
  }
  for (const [i, value] of before['context'].entries()) {
    if (!isAhead(Math.floor(i / D))) leak = Math.max(leak, Math.abs(value - after['context'][i]));
  }
  return { sumError, weightAhead, leak };
}

async function checkGradients(): Promise<SelftestCalls['gradients'][1]> {
  const weights = new Map(
    [...initialTensors(CONFIG, { seed: SEED, scheme: 'torch' })].map(({ name, data }) => [name, data]),
  );
  const tokens = new SharedArrayBuffer(2 * B * (T + 1));
  new Uint16Array(tokens).set(Array.from({ length: B * (T + 1) }, (_, i) => (i * 17 + 5) % CONFIG.vocab_size));
  /** The stage computes with these very arrays, so moving them moves its weights. */
  const live = new Map<string, Float32Array>();
  const stage = new TrainStage(
    await engine,
    {
      config: CONFIG,
      stage: { firstBlock: 0, endBlock: CONFIG.n_layers, embeds: true, head: true },
      batchSize: B,
      microBatchSize: B,
      contextLength: T,
      seed: SEED,
      tokens,
      wideTokens: false,
      optimizerState: false,
    },
    ({ name }, _, into) => {
      into.set(weights.get(name)!);
      live.set(name, into);
    },
  );
  const micro: MicroBatch = { index: 0, step: 1, firstSequence: 0, starts: [0, T + 1] };
  const meanLoss = async (): Promise<number> => {
    const { losses } = await stage.evaluate(micro, stage.embed(micro, { train: false }));
    return losses!.reduce((sum, loss) => sum + loss, 0) / (B * T);
  };
  await stage.forward(micro, stage.embed(micro, { train: true }));
  const dx = await stage.backward(micro, null);
  await stage.allWeightGradients(micro);
  stage.embedBackward(micro, dx);
  stage.finish();

  let worst = { error: 0, tensor: '' };
  for (const [tensor, data] of live) {
    const start = weights.get(tensor)!;
    const gradient = stage.gradient(tensor);
    const norm = Math.sqrt(gradient.reduce((sum, value) => sum + value * value, 0));
    const lossAt = async (distance: number): Promise<number> => {
      for (const [i, value] of gradient.entries()) data[i] = start[i] + (distance * value) / norm;
      return await meanLoss();
    };
    const slope = ((await lossAt(MOVE)) - (await lossAt(-MOVE))) / (2 * MOVE);
    data.set(start);
    // Along the gradient the loss climbs by the gradient's length.
    const error = Math.abs(slope / norm - 1);
    if (!(error <= worst.error)) worst = { error, tensor };
  }
  await stage.close();
  return { ...worst, count: weights.size };
}

async function handle(request: SelftestRequest): Promise<SelftestCalls[keyof SelftestCalls][1]> {
  switch (request.type) {
    case 'attention':
      return await checkAttention();
    case 'gradients':
      return await checkGradients();
    default:
      request satisfies never;
      throw new Error('unknown request');
  }
}

export default replying(handle, SELFTEST_THREAD);
