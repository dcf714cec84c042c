// Jobs are cancelled at random moments. What they still did is read from two records: the event log, and a trace of the requests
// that threads take up, with the cancel in between. The time that a cancel takes is compared with that of a micro-batch.

import { readFileSync } from 'node:fs';
import path from 'node:path';
import { FOLLOW_TOKENS_MAX } from '../../src/daemon/serving/batcher.ts';
import { ofType, type DataHome, type RawClient } from '../e2e/daemon-fixture.ts';
import type { Random } from './random.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';
import { hookEnv, makeModel, trainSpec } from './training.ts';

const WORKERS = 2;
/** These are far more micro-batches than may be under way at once, so that a cancel which waits for the step's end is seen. */
const MICRO_BATCHES = 32;
const TRAIN = { batchSize: MICRO_BATCHES, steps: 1000, evalEvery: 0, valSplit: 0, checkpointEvery: 0 };
/** One try of so many trains a model whose micro-batch takes some 100 ms, which is far longer than a reply. */
const WIDE_EVERY = 5;
const WIDE_MODEL = { context_length: 256, emb_dim: 384, n_heads: 6, n_layers: 6 };
const WIDE = { ...TRAIN, batchSize: 8, contextLength: 256 };
const WIDE_STEPS = 3;
const GENERATE = {
  model: 'm',
  prompt: 'Line',
  maxTokens: 4000,
  onContextFull: 'slide',
  temperature: 1,
  speculate: false,
};
/** The most events that come before the cancel. With none, the job has just been submitted. */
const EVENTS_BEFORE_MAX = { train: 3, generate: 60 };
const DELAY_MS_MAX = 20;

/** The number of requests of a type before and after the cancel. */
type Counts = Readonly<Record<'before' | 'after', (type: string) => number>>;

/** Submits a job and cancels it at some moment. Resolves, when it has ended, to what threads began before and after the cancel. */
async function cancelled(
  client: RawClient,
  { kind, random, log }: { kind: 'train' | 'generate'; random: Random; log: string },
): Promise<{ jobId: string; counts: Counts }> {
  const from = readFileSync(log, 'utf8').length;
  const spec = kind === 'train' ? { ...trainSpec('m'), ...TRAIN } : GENERATE;
  const jobId = await client.submit(kind, spec);
  await client.subscribe(jobId);
  const events = random.integer(0, EVENTS_BEFORE_MAX[kind]);
  if (events > 0) {
    const type = kind === 'train' ? 'step' : 'token';
    await client.until(() => client.events.filter((event) => event.type === type).length >= events);
  }
  await new Promise((resolve) => setTimeout(resolve, random.integer(0, DELAY_MS_MAX)));
  const { state } = await client.request<{ state: string }>('job.cancel', { jobId });
  check(state === 'cancelled', `the job is ${state}`);
  await client.untilEnd(jobId);
  const lines = readFileSync(log, 'utf8').slice(from).trim().split('\n');
  const at = lines.indexOf('0 cancelled');
  check(at >= 0, 'the main thread cancelled nothing');
  const count = (part: readonly string[]) => (type: string) => part.filter((line) => line.endsWith(` ${type}`)).length;
  return { jobId, counts: { before: count(lines.slice(0, at)), after: count(lines.slice(at + 1)) } };
}

/** The requests of a step, on any stage. */
const STEP_REQUESTS = [
  ...['trainEmbed', 'trainForward', 'trainBackward', 'trainEmbedBackward'],
  ...['trainWeightGradients', 'trainLend', 'trainWeightGradientsFor', 'trainTakeBack', 'trainFinish', 'trainUpdate'],
];

/** Each stage may finish the request that it is at, as no more than one is on its way to a thread. Returns what was begun after. */
function checkTrain(client: RawClient, { before, after }: Counts): number {
  const steps = ofType(client.events, 'step').length;
  const updates = before('trainUpdate');
  // Every stage updates once in a step. A step may be in the log once all stages have begun to update.
  check(steps <= Math.ceil(updates / WORKERS) + 1, `${steps} steps were told, and ${updates} updates begun`);
  const begun = STEP_REQUESTS.reduce((sum, type) => sum + after(type), 0);
  check(begun <= WORKERS, `${begun} requests of a step were begun after the cancel`);
  return begun;
}

/** Cancels a training of the wide model. Resolves to the time that it took, divided by that of a micro-batch. */
async function timed(client: RawClient, random: Random): Promise<number> {
  const jobId = await client.submit('train', { ...trainSpec('wide'), ...WIDE });
  await client.subscribe(jobId);
  const times: number[] = [];
  for (let step = 1; step <= WIDE_STEPS; step++) {
    await client.untilStep(jobId, step);
    times.push(performance.now());
  }
  const stepMs = (times.at(-1)! - times[0]) / (WIDE_STEPS - 1);
  // Each worker is at a micro-batch of its own at the same time.
  const microBatchMs = (WORKERS * stepMs) / WIDE.batchSize;
  await new Promise((resolve) => setTimeout(resolve, random.fraction() * stepMs));
  const startMs = performance.now();
  const { state } = await client.request<{ state: string }>('job.cancel', { jobId });
  const ms = performance.now() - startMs;
  check(state === 'cancelled', `the job is ${state}`);
  return ms / microBatchMs;
}

/** Does the same up to three times, because the machine may be busy with something else. */
async function timely(client: RawClient, random: Random): Promise<number> {
  let part = Infinity;
  for (let i = 0; i < 3 && part > 1; i++) part = await timed(client, random);
  check(part <= 1, `a cancel took ${part.toFixed(2)} of the time of a micro-batch`);
  return part;
}

/** Only what is being computed is finished. A stage goes on by itself for some tokens, until it is interrupted. */
function checkGenerate(client: RawClient, { before, after }: Counts): number {
  const steps = (count: Counts['before']): number => count('serveStep') + count('serveFollow');
  const [begun, later] = [steps(before), steps(after)];
  check(later <= 1, `${later} requests were begun after the cancel`);
  const tokens = ofType(client.events, 'token').length;
  check(tokens <= FOLLOW_TOKENS_MAX * (begun + later), `${tokens} tokens were told after ${begun} requests`);
  return later;
}

async function cancels({ tries, random, tally, home: makeHome }: Context): Promise<Outcome> {
  const home: DataHome = makeHome();
  const log = path.join(home.dir, 'trace');
  home.write('trace', '');
  await home.start({ workers: WORKERS, env: hookEnv({ point: 'none:0', action: 'trace', log }) });
  await makeModel(home, 'm');
  await makeModel(home, 'wide', WIDE_MODEL);
  const worst = { train: 0, generate: 0 };
  const parts: number[] = [];
  for (let i = 0; i < tries; i++) {
    const kind = i % 2 === 0 ? 'train' : 'generate';
    await tally.try(async () => {
      const client = await home.connect();
      if (i % WIDE_EVERY === WIDE_EVERY - 1) {
        parts.push(await timely(client, random));
        client.close();
        return;
      }
      const { jobId, counts } = await cancelled(client, { kind, random, log });
      const last = client.events.at(-1);
      check(last?.type === 'cancelled' && last.jobId === jobId, 'something was told after the end');
      const done = kind === 'train' ? checkTrain(client, counts) : checkGenerate(client, counts);
      worst[kind] = Math.max(worst[kind], done);
      client.close();
    });
  }
  tally.note(`the most that was still begun: ${worst.train} requests of training, ${worst.generate} of generation`);
  parts.sort((a, b) => a - b);
  const [median, longest] = [parts[parts.length >> 1], parts.at(-1)!].map((part) => part.toFixed(2));
  tally.note(`a cancel took ${median} of a micro-batch's time in the median, ${longest} at the most`);
  return tally.outcome();
}

export const cancelRows: readonly Row[] = [
  {
    name: 'R18',
    title: 'a cancel takes effect within the time of a micro-batch, or the token',
    tries: 200,
    short: 12,
    run: cancels,
  },
];
