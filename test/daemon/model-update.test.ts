// One optimizer update over two real stages on the calling thread, whose requests are noted: who updates what, that it does not
// show in the bits, and that a stage is ready as soon as its own tensors are.

import { MessageChannel } from 'node:worker_threads';
import { afterEach, beforeAll, expect, test } from 'vitest';
import { ModelUpdate, Room } from '../../src/daemon/model-update.ts';
import type { StageCaller } from '../../src/daemon/pipeline.ts';
import { planStages } from '../../src/daemon/plan.ts';
import type { GptConfig } from '../../src/model/config.ts';
import { initialTensors } from '../../src/model/init.ts';
import type { Engine } from '../../src/workers/engine.ts';
import { loadEngine } from '../../src/workers/load-engine.ts';
import { Loans } from '../../src/workers/loans.ts';
import type { StageCalls, UpdateLoan } from '../../src/workers/messages.ts';
import { TrainStage } from '../../src/workers/train-stage.ts';

const T = 8;
/** Of two stages, the first one with three blocks, of which the update of each is worth its way. */
const CONFIG: GptConfig = {
  ...{ vocab_size: 40, context_length: T, emb_dim: 304, n_heads: 2, n_layers: 5 },
  ...{ drop_rate: 0, qkv_bias: false, tie_weights: false },
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
  /** Number of the stage and what it was asked for. */
  readonly asked: string[];
}

/** Two stages that are through their backward passes. */
async function twoStages(): Promise<Two> {
  const tokens = new SharedArrayBuffer(4 * (T + 1));
  new Uint16Array(tokens).forEach((_, i, ids) => (ids[i] = (i * 7) % CONFIG.vocab_size));
  const setup = {
    ...{ config: CONFIG, batchSize: 1, microBatchSize: 1, contextLength: T, seed: 1, tokens, wideTokens: false },
    optimizerState: false,
  };
  const stages = PLANS.map(
    (stage) => new TrainStage(engine, { ...setup, stage }, ({ name }) => initial.get(name)!.slice()),
  );
  const micro = { index: 0, step: 1, firstSequence: 0, starts: [0] };
  const { y } = await stages[0].forward(micro, stages[0].embed(micro, { train: true }));
  await stages[1].forward(micro, y!);
  const dx = await stages[0].backward(micro, await stages[1].backward(micro, null));
  for (const stage of stages) await stage.weights(micro);
  stages[0].embedBackward(micro, dx);
  for (const stage of stages) stage.finish();
  const { port1, port2 } = new MessageChannel();
  const loans = [new Loans([null, port1]), new Loans([port2, null])];
  opened.push(...stages, ...loans);
  const asked: string[] = [];
  const callers = stages.map(({ optimizer }, number) => {
    const answer = async (request: Request): Promise<object> => {
      switch (request.type) {
        case 'trainUpdate':
          asked.push(`${number} trainUpdate ${request.part}`);
          return { done: await optimizer.update(request, request.part) };
        case 'trainLendUpdate':
          asked.push(`${number} trainLendUpdate ${request.blocks.join(' ')}`);
          loans[number].send(request.with, request.key, optimizer.lend(request.blocks));
          return {};
        case 'trainUpdateFor': {
          asked.push(`${number} trainUpdateFor`);
          const loan = loans[number].take(request.with, request.key) as UpdateLoan;
          loans[number].send(request.with, request.key, await optimizer.updateFor(request, loan));
          return {};
        }
        case 'trainUpdated':
          asked.push(`${number} trainUpdated`);
          optimizer.takeBack(loans[number].take(request.with, request.key) as UpdateLoan);
          return {};
        default:
          throw new Error(`an update does not ask for ${request.type}`);
      }
    };
    const thread: StageCaller = {
      isWanted: () => false,
      call: async (type, input) => (await answer({ type, ...input } as Request)) as never,
    };
    return { thread, plan: PLANS[number] };
  });
  return { stages, callers, asked };
}

type Request = { [K in keyof StageCalls]: { type: K } & StageCalls[K][0] }[keyof StageCalls];

const begin = ({ callers }: Two, { held, room = new Room() }: { held: boolean; room?: Room }): ModelUpdate =>
  new ModelUpdate(LEASE, { config: CONFIG, stages: callers, held, room, signal: NEVER, step: ADAMW, decayAll: false });

const bits = ({ buffer, byteOffset, byteLength }: Float32Array): Buffer => Buffer.from(buffer, byteOffset, byteLength);

const stateOf = ({ stages }: Two): Map<string, Float32Array> =>
  new Map(
    stages.flatMap((stage) =>
      stage
        .tensors()
        .flatMap(({ name, size }) =>
          (['w', 'm', 'v'] as const).map(
            (part) => [`${part} of ${name}`, stage.read({ tensor: name, part, start: 0, count: size })] as const,
          ),
        ),
    ),
  );

test('the last stage updates blocks of the first one, which gets them back, and the bits are the same', async () => {
  expect(PLANS.map(({ firstBlock, endBlock }) => [firstBlock, endBlock])).toEqual([
    [0, 3],
    [3, 5],
  ]);
  const [own, lent] = [await twoStages(), await twoStages()];
  await begin(own, { held: true }).all();
  await begin(lent, { held: false }).all();
  const parts = ['0 trainUpdate ends', '0 trainUpdate 0', '0 trainUpdate 1', '0 trainUpdate 2'];
  const last = ['1 trainUpdate 3', '1 trainUpdate 4', '1 trainUpdate ends'];
  expect(own.asked.toSorted()).toEqual([...parts, ...last].toSorted());
  const loan = ['0 trainLendUpdate 2', '1 trainUpdateFor', '0 trainUpdated'];
  expect(lent.asked.toSorted()).toEqual([...parts.slice(0, 3), ...last, ...loan].toSorted());
  expect(lent.asked[0]).toBe('0 trainLendUpdate 2');
  const [expected, state] = [stateOf(own), stateOf(lent)];
  for (const [name, data] of expected) expect(bits(state.get(name)!).equals(bits(data)), name).toBe(true);
});

test('a stage is ready before others are, and waits for a snapshot that has no room', async () => {
  const two = await twoStages();
  const room = new Room();
  two.stages[1].optimizer.beginSnapshot({ keptBytesMax: 0 });
  const update = begin(two, { held: true, room });
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

test('whoever needs a stage meets the failure of its update', async () => {
  const two = await twoStages();
  two.stages[1].reset();
  const update = begin(two, { held: true });
  await update.ready(0);
  await expect(update.ready(1)).rejects.toThrow('has no gradient');
  await expect(update.all()).rejects.toThrow('has no gradient');
  await update.settled();
});
