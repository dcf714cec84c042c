// Hours of ordinary use: models are made, trained, used, evaluated and deleted, over connections that come and go. Every round is the
// same work and gives the same bits, and what the daemon holds between rounds does not grow.

import { isDeepStrictEqual } from 'node:util';
import { isTerminal, type JobEvent } from '../../src/daemon/protocol/jobs.ts';
import type { EvaluateResult } from '../../src/daemon/protocol/evaluation.ts';
import { type RawClient, generateResult, RpcRefusal, trainResult, type DataHome } from '../e2e/daemon-fixture.ts';
import { descriptorCount, fileBytes, MIB, residentBytes, waitUntil } from './probe.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';
import { checkGapless, MODEL, trainSpec, uploadText } from './training.ts';

/** A round begins every ten seconds, so 720 rounds are two hours. They take little of one core. */
const PERIOD_MS = 10_000;
const HOUR_MS = 3_600_000;
/** Fewer rounds than this follow one another without a pause. */
const PACED_ROUNDS_MIN = 30;
/** A run has a trend when its second half has so many rounds. */
const TREND_ROUNDS_MIN = 180;
const TREND_MIB_PER_HOUR_MAX = 5;
/** In a shorter run growth counts after so many rounds, in which the heap takes its working size. */
const WARM_ROUNDS = 10;
const GROWTH_MIB_MAX = 48;
const WAL_MIB_MAX = 64;
/** A round ends six jobs, so what older jobs have left is deleted all the time. */
const KEPT_JOBS = 20;
const DATABASE_MIB_MAX = 16;
const ATTEMPTS_MAX = 5;
const COMPLETION_TOKENS = 24;

interface Sample {
  readonly atMs: number;
  readonly residentMib: number;
  readonly walMib: number;
}

async function soak({ tries, tally, home: makeHome }: Context): Promise<Outcome> {
  const home = makeHome();
  const daemon = await home.start({ workers: 2, flags: ['--keep-jobs', String(KEPT_JOBS)] });
  // The first round loads what is loaded only once.
  const expected = await round(home, 'first');
  const open = descriptorCount(daemon.pid);
  const samples: Sample[] = [];
  const startedAt = performance.now();
  const periodMs = tries < PACED_ROUNDS_MIN ? 0 : PERIOD_MS;
  let missed = 0;
  for (let i = 0; i < tries; i++) {
    const waitMs = startedAt + i * periodMs - performance.now();
    // A machine that was put to sleep does not make up for the rounds that it missed.
    if (periodMs > 0 && waitMs < -periodMs) {
      missed += 1;
      continue;
    }
    await new Promise((resolve) => setTimeout(resolve, waitMs));
    await tally.try(async () => {
      const found = await round(home, `m${i}`);
      check(
        isDeepStrictEqual(found, expected),
        `a round gave ${JSON.stringify(found)}, not ${JSON.stringify(expected)}`,
      );
      await waitUntil(() => descriptorCount(daemon.pid) <= open, `${open} descriptors as after the first round`);
      const walMib = fileBytes(home, 'gptd.db-wal') / MIB;
      check(walMib < WAL_MIB_MAX, `the write-ahead log takes ${walMib.toFixed(1)} MiB`);
      const databaseMib = fileBytes(home, 'gptd.db') / MIB;
      check(databaseMib < DATABASE_MIB_MAX, `the database takes ${databaseMib.toFixed(1)} MiB`);
      samples.push({ atMs: performance.now(), residentMib: residentBytes(daemon.pid) / MIB, walMib });
    });
  }
  const hours = (performance.now() - startedAt) / HOUR_MS;
  const [first, last] = [samples[Math.min(WARM_ROUNDS, samples.length >> 1)], samples[samples.length - 1]];
  const growthMib = last.residentMib - first.residentMib;
  const settled = samples.slice(Math.floor(samples.length / 2));
  // A shorter run has no trend yet.
  const isTrend = settled.length >= TREND_ROUNDS_MIN;
  const slope = mibPerHour(settled);
  const trend = isTrend ? `, by ${slope.toFixed(2)} MiB/h in the second half` : '';
  const growth = `resident memory, once warm, grew from ${first.residentMib.toFixed(1)} to ${last.residentMib.toFixed(1)} MiB${trend}`;
  if (isTrend ? slope > TREND_MIB_PER_HOUR_MAX : growthMib > GROWTH_MIB_MAX) tally.fault(growth);
  tally.note(
    `${hours.toFixed(2)} h, ${missed} rounds left out while the machine did other things; ${growth}; ${open} descriptors; ` +
      `write-ahead log at most ${Math.max(...samples.map(({ walMib }) => walMib)).toFixed(1)} MiB; ` +
      `database ${(fileBytes(home, 'gptd.db') / MIB).toFixed(1)} MiB`,
  );
  return tally.outcome();
}

/** Runs one round. Resolves to its results, which are the same bits in every round. */
async function round(home: DataHome, model: string): Promise<object> {
  const { seed, ...config } = MODEL;
  const follow = (kind: string, spec: object): Promise<JobEvent[]> =>
    followed(home, { kind, spec, key: `${kind} ${model}` });
  await follow('create', { model, config, seed, init: 'gpt2', tokenizer: 'byte' });
  await insistently(() => uploadText(home));
  const spec = trainSpec(model);
  const { digest, loss } = trainResult(await follow('train', spec));
  const generation = { model, prompt: 'Line 7', maxTokens: COMPLETION_TOKENS, temperature: 1, seed: 3 };
  const [events, streamed] = await Promise.all([follow('generate', generation), completion(home, model)]);
  const evaluation = { model, data: (spec as { data: unknown }).data, maxBatches: 2 };
  const evaluated = (await follow('evaluate', evaluation)).at(-1);
  check(evaluated?.type === 'succeeded', `the evaluation ended with ${JSON.stringify(evaluated)}`);
  await cancelled(home, model);
  await insistently(async () => {
    const client = await home.connect();
    await client.request('model.delete', { model }).catch((error: unknown) => {
      // The reply to the attempt before this one was lost.
      if (!(error instanceof RpcRefusal && error.data?.code === 'not_found')) throw error;
    });
    client.close();
  });
  const { loss: evaluatedLoss } = evaluated.data.result as EvaluateResult;
  return { digest, loss, ids: generateResult(events).ids, streamed, evaluatedLoss };
}

/** Follows a job over at least two connections: the first is dropped in the middle of the events, and another hears the rest. */
async function followed(
  home: DataHome,
  { kind, spec, key }: { readonly kind: string; readonly spec: object; readonly key: string },
): Promise<JobEvent[]> {
  const events: JobEvent[] = [];
  const hear = (enough: (client: RawClient, jobId: string) => Promise<unknown>): Promise<void> =>
    insistently(async () => {
      const client = await home.connect();
      try {
        const jobId = await client.submit(kind, spec, key);
        await client.subscribe(jobId, events.length);
        await enough(client, jobId);
      } finally {
        events.push(...client.events);
        client.close();
      }
    });
  await hear((client) => client.until(({ seq }) => seq >= 3));
  if (!isTerminal(events.at(-1)?.type ?? '')) await hear((client, jobId) => client.untilEnd(jobId));
  checkGapless(events, `the log of ${key}`);
  return events;
}

/** Runs a training and cancels it in the middle. */
const cancelled = (home: DataHome, model: string): Promise<void> =>
  insistently(async () => {
    const client = await home.connect();
    try {
      const jobId = await client.submit('train', { ...trainSpec(model), steps: 100_000 }, `cancelled ${model}`);
      await client.subscribe(jobId);
      await client.untilStep(jobId, 1);
      await client.request('job.cancel', { jobId });
      const { type } = await client.untilEnd(jobId);
      check(type === 'cancelled', `the cancelled training ended with ${type}`);
    } finally {
      client.close();
    }
  });

/** Resolves to the text that OpenAI's endpoint streams. */
async function completion(home: DataHome, model: string): Promise<string> {
  let text = '';
  await insistently(async () => {
    const { url, token } = home.daemon;
    const response = await fetch(`${url}/v1/completions`, {
      method: 'POST',
      headers: { authorization: `Bearer ${token}`, 'content-type': 'application/json', connection: 'close' },
      body: JSON.stringify({
        model,
        prompt: 'Line 8',
        max_tokens: COMPLETION_TOKENS,
        temperature: 1,
        seed: 4,
        stream: true,
      }),
    });
    const body = await response.text();
    check(body.trimEnd().endsWith('data: [DONE]'), `the completion ended with ${response.status} ${body.slice(-200)}`);
    text = body
      .split('\n')
      .filter((line) => line.startsWith('data: {'))
      .map((line) => (JSON.parse(line.slice(6)) as { choices: { text: string }[] }).choices[0].text)
      .join('');
  });
  return text;
}

/** Tries again when a connection was lost, because a machine that sleeps loses all of them. A refusal is not tried again. */
async function insistently(work: () => Promise<void>): Promise<void> {
  for (let attempt = 1; ; attempt++) {
    try {
      await work();
      return;
    } catch (error) {
      if (error instanceof RpcRefusal || attempt === ATTEMPTS_MAX) throw error;
    }
  }
}

/** The slope of resident memory over time, by least squares. */
function mibPerHour(samples: readonly Sample[]): number {
  const mean = (values: readonly number[]): number => values.reduce((sum, value) => sum + value, 0) / values.length;
  const [x, y] = [mean(samples.map(({ atMs }) => atMs)), mean(samples.map(({ residentMib }) => residentMib))];
  let [products, squares] = [0, 0];
  for (const { atMs, residentMib } of samples) {
    products += (atMs - x) * (residentMib - y);
    squares += (atMs - x) ** 2;
  }
  return squares === 0 ? 0 : (products / squares) * HOUR_MS;
}

export const soakRows: readonly Row[] = [
  {
    name: 'R32',
    title:
      'two hours of mixed work, a round every ten seconds: memory, descriptors, write-ahead log and database stay flat',
    tries: 720,
    short: 3,
    run: soak,
  },
];
