// Checks the job queue as its users see it: cancelling, repeated submissions, waiting, refusals, and two generations side by
// side.

import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import type { CheckpointRecord, CreateResult } from '../../src/daemon/protocol/models.ts';
import type { JobRecord } from '../../src/daemon/protocol/jobs.ts';
import { EXIT } from '../../src/cli/exit-codes.ts';
import {
  flagsOf,
  generateResult,
  ofType,
  startedHome,
  trainResult,
  type DataHome,
  type RawClient,
} from './daemon-fixture.ts';

const CONFIG = { vocab_size: 256, context_length: 64, emb_dim: 32, n_heads: 2, n_layers: 2, drop_rate: 0 };
const TEXT = Array.from({ length: 200 }, (_, i) => `Verse ${i} of ${(i * 37) % 89}.`).join('\n');
/** A training with more steps than any test waits for. */
const ENDLESS = { steps: 1_000_000, batchSize: 2, contextLength: 16, valSplit: 0 };

const homes: DataHome[] = [];
let shared: DataHome;
let client: RawClient;
let text: string;

async function upload({ daemon }: DataHome): Promise<string> {
  const hash = await crypto.subtle.digest('SHA-256', new TextEncoder().encode(TEXT));
  const digest = `sha256:${Buffer.from(hash).toString('hex')}`;
  const headers = { authorization: `Bearer ${daemon.token}` };
  const { status } = await fetch(`${daemon.url}/v1/blobs/${digest}`, { method: 'PUT', headers, body: TEXT });
  expect(status).toBe(201);
  return digest;
}

beforeAll(async () => {
  shared = await startedHome({ workers: 2 });
  client = await shared.connect();
  text = await upload(shared);
  await client.follow('create', { model: 'm', config: CONFIG, tokenizer: 'byte' });
});

afterEach(async () => {
  await Promise.all(homes.splice(0).map((home) => home.close()));
});

afterAll(async () => {
  client.close();
  await shared.close();
});

async function newHome(flags: readonly string[] = []): Promise<{ home: DataHome; client: RawClient; text: string }> {
  const home = await startedHome({ flags });
  homes.push(home);
  const own = await home.connect();
  await own.follow('create', { model: 'm', config: CONFIG, tokenizer: 'byte' });
  return { home, client: own, text: await upload(home) };
}

describe('cancelling', () => {
  test('with Ctrl-C ends the command with 130 and the job for good; its checkpoints stay', async () => {
    const { home, client: own } = await newHome();
    const file = home.write('text.txt', TEXT);
    const flags = flagsOf({ steps: 1_000_000, batch_size: 2, context_length: 16, val_split: 0, checkpoint_every: 5 });
    const command = home.run(['train', 'm', '--data', file, ...flags, '--json']);
    await command.said('"type":"checkpoint"');
    command.child.kill('SIGINT');
    const { exitCode, stderr } = await command.ended;
    expect(exitCode).toBe(EXIT.cancelled);
    expect(stderr).toMatch(/gptd: Job \S+ was cancelled\.\n$/);

    const list = async (on: RawClient): Promise<readonly JobRecord[]> =>
      (await on.request<{ jobs: JobRecord[] }>('job.list', { kind: 'train' })).jobs;
    const before = await list(own);
    expect(before).toMatchObject([{ state: 'cancelled', result: null, error: null }]);
    const { checkpoints } = await own.request<{ checkpoints: CheckpointRecord[] }>('checkpoint.list', { model: 'm' });
    const steps = checkpoints.map(({ step }) => step);
    expect(Math.max(...steps)).toBeGreaterThanOrEqual(5);

    await home.restart('SIGTERM', {});
    const again = await home.connect();
    expect(await list(again)).toEqual(before);
    expect(await again.request('job.list', { all: false })).toEqual({ jobs: [] });
    expect(await again.request('checkpoint.list', { model: 'm' })).toEqual({ checkpoints });
    const generated = await again.follow('generate', {
      model: `m@${Math.max(...steps)}`,
      prompt: 'Verse',
      maxTokens: 4,
    });
    expect(generateResult(generated).ids).toHaveLength(4);
    expect((await home.cli(['attach', before[0].jobId])).exitCode).toBe(EXIT.cancelled);
  });

  test('a queued job never starts, a running one says nothing after `cancelled`, an ended one stays as it is', async () => {
    const running = await client.submit('train', { model: 'm', data: [text], ...ENDLESS });
    const queued = await client.submit('train', { model: 'm', data: [text], ...ENDLESS });
    await client.subscribe(running);
    await client.subscribe(queued);
    await client.untilStep(running, 3);
    for (const jobId of [queued, running, queued, running]) {
      expect(await client.request('job.cancel', { jobId })).toEqual({ jobId, state: 'cancelled' });
    }
    const typesOf = (id: string): string[] => client.events.filter(({ jobId }) => jobId === id).map(({ type }) => type);
    await client.untilEnd(running);
    expect(typesOf(queued)).toEqual(['queued', 'cancelled']);
    expect(typesOf(running).slice(0, 2)).toEqual(['queued', 'started']);
    expect(typesOf(running).indexOf('cancelled')).toBe(typesOf(running).length - 1);
    const { lastSeq } = await client.request<JobRecord>('job.get', { jobId: running });
    expect(lastSeq).toBe(typesOf(running).length);
    for (const method of ['job.pause', 'job.resume']) {
      await expect(client.request(method, { jobId: running })).rejects.toMatchObject({ data: { code: 'conflict' } });
    }
  });
});

test('a list of large specs comes in parts of at most 4 MiB, and the command shows them all', async () => {
  const { home, client: own } = await newHome();
  const spec = { model: 'm', prompt: 'Verse', maxTokens: 1, bannedIds: Array<number>(65_536).fill(255) };
  const submitted: string[] = [];
  for (let i = 0; i < 20; i++) submitted.unshift(await own.submit('generate', spec));
  const parts: string[][] = [];
  let before: string | undefined;
  do {
    const list = { kind: 'generate', before };
    const part = await own.request<{ jobs: JobRecord[]; next?: string }>('job.list', list);
    expect(JSON.stringify(part).length).toBeLessThan((4 << 20) + 20_000);
    parts.push(part.jobs.map(({ jobId }) => jobId));
    before = part.next;
  } while (before !== undefined);
  expect(parts.map(({ length }) => length)).toEqual([15, 5]);
  expect(parts.flat()).toEqual(submitted);
  const { jobs } = await home.json<{ jobs: JobRecord[] }>(['jobs', '--all']);
  expect(jobs.map(({ jobId }) => jobId).slice(0, 20)).toEqual(submitted);
  await expect(own.request('job.list', { before: 'nobody' })).rejects.toMatchObject({ data: { code: 'not_found' } });
});

describe('submitting', () => {
  test('with the same key again gives the same job, also after a restart, and is a conflict with another spec', async () => {
    const { home, client: own } = await newHome();
    const spec = { model: 'm', prompt: 'Verse', maxTokens: 3 };
    const jobId = await own.submit('generate', spec, 'once');
    expect(await own.submit('generate', spec, 'once')).toBe(jobId);
    await expect(own.submit('generate', { ...spec, maxTokens: 4 }, 'once')).rejects.toMatchObject({
      code: -32000,
      data: { code: 'conflict' },
    });
    await own.subscribe(jobId);
    await own.untilEnd(jobId);
    await home.restart('SIGKILL', {});
    const again = await home.connect();
    expect(await again.submit('generate', spec, 'once')).toBe(jobId);
    expect((await again.request<{ jobs: JobRecord[] }>('job.list', { kind: 'generate' })).jobs).toHaveLength(1);
  });

  test('beyond the limit of the queue is refused with queue_full until there is room', async () => {
    const { client: own, text: data } = await newHome(['--queue-limit', '2']);
    const spec = { model: 'm', data: [data], ...ENDLESS };
    const running = await own.submit('train', spec);
    await own.subscribe(running);
    await own.untilStep(running, 1);
    const queued = await own.submit('train', spec, 'first');
    await own.submit('train', spec, 'second');
    await expect(own.submit('train', spec, 'third')).rejects.toMatchObject({
      code: -32000,
      data: { code: 'queue_full' },
    });
    expect(await own.submit('train', spec, 'first')).toBe(queued);
    expect(await own.request('daemon.status')).toMatchObject({ queue: { queued: 2, running: 1, limit: 2 } });
    await own.request('job.cancel', { jobId: queued });
    await own.submit('train', spec, 'third');
    expect(await own.request('daemon.status')).toMatchObject({ queue: { queued: 2, running: 1 } });
  });

  test('a model that exists already is a conflict and stays as it is', async () => {
    const before = await client.request('model.get', { model: 'm' });
    const events = await client.follow('create', { model: 'm', config: { ...CONFIG, emb_dim: 64 } });
    expect(events.at(-1)).toMatchObject({ type: 'failed', data: { error: { code: 'conflict' } } });
    expect(await client.request('model.get', { model: 'm' })).toEqual(before);
  });

  test('a training or a generation makes it wait for the model that a queued job is about to make', async () => {
    await client.submit('create', { model: 'first', config: { ...CONFIG, vocab_size: 50257 } });
    await client.submit('create', { model: 'later', config: CONFIG, tokenizer: 'byte' });
    const trained = await client.submit('train', { model: 'later', data: [text], steps: 2, valSplit: 0 });
    const generated = await client.submit('generate', { model: 'later', prompt: 'V', maxTokens: 2 });
    for (const jobId of [trained, generated]) {
      await client.subscribe(jobId);
      expect(await client.untilEnd(jobId)).toMatchObject({ type: 'succeeded' });
    }
    expect(trainResult(client.events.filter(({ jobId }) => jobId === trained))).toMatchObject({
      model: 'later',
      step: 2,
    });
  });
});

test('a model is not deleted while a job uses it, and can be afterwards', async () => {
  const created = await client.follow('create', { model: 'doomed', config: CONFIG, tokenizer: 'byte' });
  expect(created.at(-1)?.type).toBe('succeeded');
  const jobId = await client.submit('train', { model: 'doomed', data: [text], ...ENDLESS });
  await expect(client.request('model.delete', { model: 'doomed' })).rejects.toMatchObject({
    data: { code: 'conflict' },
  });
  await client.request('job.cancel', { jobId });
  expect(await client.request('model.delete', { model: 'doomed' })).toEqual({});
  await expect(client.request('model.get', { model: 'doomed' })).rejects.toMatchObject({ data: { code: 'not_found' } });
  const again = await client.follow('create', { model: 'doomed', config: CONFIG, tokenizer: 'byte' });
  expect(again.at(-1)).toMatchObject({ data: { result: (created.at(-1)?.data as { result: CreateResult }).result } });
});

test('generations at once have the tokens and logprobs that each has alone', async () => {
  const specs = ['Verse 1 of', 'V', 'And so it goes on'].map((prompt, i) => ({
    model: 'm',
    prompt,
    maxTokens: 30 + i,
    temperature: 0.5 * i,
    seed: 7 + i,
  }));
  const alone = [];
  for (const spec of specs) alone.push(ofType(await client.follow('generate', spec), 'token'));
  const together = await Promise.all(specs.map((spec) => client.follow('generate', spec)));
  for (const [i, events] of together.entries()) {
    expect(ofType(events, 'token').map(({ data }) => data)).toEqual(alone[i].map(({ data }) => data));
    expect(generateResult(events).ids).toHaveLength(30 + i);
  }
});
