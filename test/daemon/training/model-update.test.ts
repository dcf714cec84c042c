// Checks one optimizer update over two real stages on the calling thread. The test notes the order of the requests to them. A
// stage is ready as soon as its own tensors are updated.

import { afterEach, beforeAll, expect, test } from 'vitest';
import { ModelUpdate, Room } from '../../../src/daemon/training/model-update.ts';
import type { StageCaller } from '../../../src/daemon/threads/stages.ts';
import { planStages } from '../../../src/daemon/threads/plan.ts';
import type { GptConfig } from '../../../src/model/config.ts';
import { initialTensors } from '../../../src/model/init.ts';
import type { Engine } from '../../../src/workers/engines/engine.ts';
import { loadEngine } from '../../../src/workers/engines/choice.ts';
import type { StageCalls } from '../../../src/workers/stage-messages.ts';
import { TrainStage } from '../../../src/workers/training/stage.ts';

const T = 8;
/** A model whose first stage of two has three blocks. */
const CONFIG: GptConfig = {
  vocab_size: 40,
  context_length: T,
  emb_dim: 32,
  n_heads: 2,
  n_layers: 5,
  drop_rate: 0,
  qkv_bias: false,
  tie_weights: false,
};
const PLANS = planStages(CONFIG, 2);
const ADAMW = { step: 1, lr: 0.01, weightDecay: 0.1, gradScale: 0.5, beta1: 0.9, beta2: 0.99, eps: 1e-8 };
const LEASE = 'training';
const NEVER = new AbortController().signal;

let engine: Engine;
let initial: Map<string, Float32Array>;
const opened: { close(): unknown }[] = [];

beforeAll(async () => {
  engine = await loadEngine('onnx');
  initial = new Map([...initialTensors(CONFIG, { seed: 1, scheme: 'gpt2' })].map(({ name, data }) => [name, data]));
});
afterEach(async () => {
  for (const each of opened.splice(0)) await each.close();
});

interface Two {
  readonly stages: readonly TrainStage[];
  readonly callers: { thread: StageCaller; plan: (typeof PLANS)[number] }[];
  /** Holds the number of the stage and the unit of each request, in order. */
  readonly asked: string[];
}

/** Resolves to two stages that have finished their backward passes. */
async function twoStages(): Promise<Two> {
  const tokens = new SharedArrayBuffer(4 * (T + 1));
  new Uint16Array(tokens).forEach((_, i, ids) => (ids[i] = (i * 7) % CONFIG.vocab_size));
  const setup = {
    config: CONFIG,
    batchSize: 1,
    microBatchSize: 1,
    contextLength: T,
    seed: 1,
    tokens,
    wideTokens: false,
    optimizerState: false,
  };
  const stages = PLANS.map(
    (stage) => new TrainStage(engine, { ...setup, stage }, ({ name }, _, into) => into.set(initial.get(name)!)),
  );
  const micro = { index: 0, step: 1, firstSequence: 0, starts: [0] };
  const { y } = await stages[0].forward(micro, stages[0].embed(micro, { train: true }));
  await stages[1].forward(micro, y!);
  const dx = await stages[0].backward(micro, await stages[1].backward(micro, null));
  for (const stage of stages) await stage.allWeightGradients(micro);
  stages[0].embedBackward(micro, dx);
  for (const stage of stages) stage.finish();
  opened.push(...stages);
  const asked: string[] = [];
  const callers = stages.map(({ optimizer }, number) => {
    const answer = (request: Request): object => {
      if (request.type !== 'trainUpdate') throw new Error(`an update does not ask for ${request.type}`);
      asked.push(`${number} ${request.unit}`);
      return { done: optimizer.update(request, request.unit) };
    };
    const thread: StageCaller = {
      isWanted: () => false,
      call: (type, input) => new Promise((resolve) => resolve(answer({ type, ...input } as Request) as never)),
    };
    return { thread, plan: PLANS[number] };
  });
  return { stages, callers, asked };
}

type Request = { [K in keyof StageCalls]: { type: K } & StageCalls[K][0] }[keyof StageCalls];

const begin = ({ callers }: Two, room = new Room()): ModelUpdate =>
  new ModelUpdate(LEASE, { stages: callers, room, signal: NEVER, step: ADAMW, decayAll: false });

test('each stage is asked for its units in the order in which the next forward pass needs them', async () => {
  const two = await twoStages();
  const weights = (stage: TrainStage): Float32Array => [...stage.parameters.values()][0].w.slice(0, 4);
  const before = two.stages.map(weights);
  await begin(two).all();
  expect(two.asked.filter((asked) => asked.startsWith('0'))).toEqual(['0 ends', '0 0', '0 1', '0 2']);
  expect(two.asked.filter((asked) => asked.startsWith('1'))).toEqual(['1 3', '1 4', '1 ends']);
  for (const [i, stage] of two.stages.entries()) {
    expect(weights(stage)).not.toEqual(before[i]);
  }
});

test('a stage is ready before others are, and waits for a snapshot that has no room', async () => {
  const two = await twoStages();
  const room = new Room();
  two.stages[1].optimizer.beginSnapshot({ keptBytesMax: 0 });
  const update = begin(two, room);
  await update.ready(0);
  let ready = false;
  const last = update.ready(1).then(() => (ready = true));
  await new Promise((resolve) => setImmediate(resolve));
  expect(ready).toBe(false);
  two.stages[1].optimizer.endSnapshot();
  room.free();
  await last;
  await update.all();
});

test('waiting for a stage rejects when its update has failed', async () => {
  const two = await twoStages();
  two.stages[1].reset();
  const update = begin(two);
  await update.ready(0);
  await expect(update.ready(1)).rejects.toThrow('has no gradient');
  await expect(update.all()).rejects.toThrow('has no gradient');
  await update.settled();
});
