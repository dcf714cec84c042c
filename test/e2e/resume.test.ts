// Interrupts the daemon: a job goes on by itself and ends with the bits of an undisturbed run, and every subscriber gets every
// event exactly once.

import { afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { JobEvent } from '../../src/daemon/protocol/jobs.ts';
import type { TrainResult } from '../../src/daemon/protocol/training.ts';
import {
  flagsOf,
  ofType,
  parseEvents,
  generateResult,
  trainResult,
  startedHome,
  type DataHome,
  type StartOptions,
} from './daemon-fixture.ts';

const STEPS = 40;
const MODEL = { vocab_size: 256, context_length: 48, emb_dim: 64, n_heads: 4, n_layers: 3, drop_rate: 0.1, seed: 5 };
const TRAINING = { steps: STEPS, batch_size: 8, micro_batch_size: 2, val_split: 0.2, lr: 1e-3, seed: 9 };
const SAVING = { eval_every: 10, eval_batches: 1, checkpoint_every: 5 };
const STOP_MS_MAX = 10_000;

/** A text whose lines are all different. */
const TEXT = Array.from({ length: 400 }, (_, i) => `Line ${i} says ${(i * i) % 97} and ${(i * 31) % 53}.`).join('\n');

const homes: DataHome[] = [];

afterEach(async () => {
  await Promise.all(homes.splice(0).map((home) => home.close()));
});

/** Resolves to the home of a daemon with an untrained model `m`. */
async function homeWithModel(options: StartOptions): Promise<DataHome> {
  const home = await startedHome(options);
  homes.push(home);
  await home.json(['create', 'm', ...flagsOf(MODEL), '--tokenizer', 'byte', '--init', 'gpt2']);
  home.write('data.txt', TEXT);
  return home;
}

const trainCommand = (home: DataHome): string[] => [
  'train',
  'm',
  '--data',
  `${home.dir}/data.txt`,
  ...flagsOf({ ...TRAINING, ...SAVING }),
];

async function detachedTraining(home: DataHome): Promise<string> {
  return (await home.json<{ jobId: string }>([...trainCommand(home), '--detach'])).jobId;
}

/** Returns the steps and evaluations without their times, which are the same in every run of a spec. */
const measured = (events: readonly JobEvent[]): unknown[] => [
  ...ofType(events, 'step').map(({ data: { step, loss, lr, gradNorm, tokens } }) => ({
    step,
    loss,
    lr,
    gradNorm,
    tokens,
  })),
  ...ofType(events, 'eval').map(({ data }) => data),
];

/** Adds the job's next events to `heard`, up to the first one that `until` accepts, over a new connection. */
async function hearOn(
  home: DataHome,
  {
    jobId,
    heard,
    until,
  }: { readonly jobId: string; readonly heard: JobEvent[]; readonly until: (event: JobEvent) => boolean },
): Promise<void> {
  const client = await home.connect();
  try {
    await client.subscribe(jobId, heard.at(-1)?.seq ?? 0);
    await client.until(until);
  } finally {
    heard.push(...client.events);
    client.close();
  }
}

const atStep =
  (step: number) =>
  (event: JobEvent): boolean =>
    event.type === 'step' && event.data.step >= step;
const atToken =
  (index: number) =>
  (event: JobEvent): boolean =>
    event.type === 'token' && event.data.index >= index;
const atEnd = ({ type }: JobEvent): boolean => ['succeeded', 'failed', 'cancelled'].includes(type);

const seqs = (events: readonly JobEvent[]): number[] => events.map(({ seq }) => seq);
const upTo = (count: number): number[] => Array.from({ length: count }, (_, i) => i + 1);

describe('training', () => {
  let reference: { readonly measured: unknown[]; readonly result: TrainResult };

  beforeAll(async () => {
    const home = await homeWithModel({ workers: 2 });
    const events = await home.events(trainCommand(home));
    reference = { measured: measured(events), result: trainResult(events) };
    await home.close();
    expect(ofType(events, 'step').map(({ data }) => data.step)).toEqual(upTo(STEPS));
    expect(seqs(events)).toEqual(upTo(events.length));
  });

  test('killed three times and started with other worker counts ends with the same bits and a log without gaps', async () => {
    const home = await homeWithModel({ workers: 1 });
    const command = home.run([...trainCommand(home), '--json']);
    await command.said('"type":"started"');
    const client = await home.connect();
    const { jobs } = await client.request<{ jobs: { jobId: string }[] }>('job.list', { kind: 'train' });
    client.close();
    const [{ jobId }] = jobs;

    const heard: JobEvent[] = [];
    // The first kill comes before the first checkpoint, the others between two checkpoints.
    for (const [step, workers] of [
      [3, 3],
      [7, 2],
      [18, 1],
    ]) {
      await hearOn(home, { jobId, heard, until: atStep(step) });
      await home.restart('SIGKILL', { workers });
      expect(heard.some(atEnd)).toBe(false);
    }
    await hearOn(home, { jobId, heard, until: atEnd });

    expect(trainResult(heard)).toEqual(reference.result);
    expect(measured(heard)).toEqual(reference.measured);
    expect(seqs(heard)).toEqual(upTo(heard.length));
    // The command that submitted the job has connected again three times and has got the same events.
    const { exitCode, stdout } = await command.ended;
    expect(exitCode).toBe(0);
    expect(parseEvents(stdout)).toEqual(heard);
  });

  test('stopped by SIGTERM ends the daemon within 10 s with code 0 and goes on after a restart to the same bits', async () => {
    const home = await homeWithModel({ workers: 2 });
    const jobId = await detachedTraining(home);
    const heard: JobEvent[] = [];
    await hearOn(home, { jobId, heard, until: atStep(12) });
    const stoppedAt = performance.now();
    expect(await home.signal('SIGTERM')).toBe(0);
    expect(performance.now() - stoppedAt).toBeLessThan(STOP_MS_MAX);
    expect(() => home.read('daemon.json')).toThrow('ENOENT');
    expect(heard.some(atEnd)).toBe(false);

    await home.start({ workers: 3 });
    await hearOn(home, { jobId, heard, until: atEnd });
    expect(trainResult(heard)).toEqual(reference.result);
    expect(measured(heard)).toEqual(reference.measured);
    expect(seqs(heard)).toEqual(upTo(heard.length));
  });

  test('paused and resumed ends with the same bits', async () => {
    const home = await homeWithModel({ workers: 1 });
    const jobId = await detachedTraining(home);
    const heard: JobEvent[] = [];
    await hearOn(home, { jobId, heard, until: atStep(13) });
    expect(await home.json(['pause', jobId])).toEqual({ jobId, state: 'paused' });
    // A pause saves the work as a stop does, and outlives the daemon.
    await home.restart('SIGKILL', { workers: 2 });
    expect(await home.json(['jobs'])).toMatchObject({ jobs: [{ jobId, state: 'paused' }] });
    expect(await home.json(['resume', jobId])).toMatchObject({ jobId });
    await hearOn(home, { jobId, heard, until: atEnd });
    expect(trainResult(heard)).toEqual(reference.result);
    expect(measured(heard)).toEqual(reference.measured);
    expect(seqs(heard)).toEqual(upTo(heard.length));
  });
});

test('a generation that was killed in the middle continues to the same tokens', async () => {
  const home = await startedHome({ workers: 2 });
  homes.push(home);
  await home.json(['create', 'm', ...flagsOf({ ...MODEL, context_length: 400 }), '--tokenizer', 'byte']);
  const generate = ['generate', 'm', '--prompt', 'Line 1', '--max-tokens', '300', '--temperature', '0.9'];
  const whole = await home.events(generate);
  const expected = generateResult(whole);
  expect(expected.ids).toHaveLength(300);

  const { jobId } = await home.json<{ jobId: string }>([...generate, '--detach']);
  const heard: JobEvent[] = [];
  await hearOn(home, { jobId, heard, until: atToken(20) });
  await home.restart('SIGKILL', { workers: 1 });
  expect(heard.some(atEnd)).toBe(false);
  await hearOn(home, { jobId, heard, until: atEnd });

  const { ids, text, reason } = generateResult(heard);
  expect({ ids, text, reason }).toEqual({ ids: expected.ids, text: expected.text, reason: 'length' });
  expect(ofType(heard, 'token').map(({ data }) => data)).toEqual(ofType(whole, 'token').map(({ data }) => data));
  expect(seqs(heard)).toEqual(upTo(heard.length));
});
