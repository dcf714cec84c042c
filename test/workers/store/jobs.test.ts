import { statSync } from 'node:fs';
import path from 'node:path';
import { describe, expect, it } from 'vitest';
import type { NewEvent, NewJob } from '../../../src/workers/store/messages.ts';
import { countRows, openedStore, temporaryDirectory } from './fixture.ts';

const job = (jobId: string, more: Partial<NewJob> = {}): NewJob => ({
  jobId,
  kind: 'train',
  spec: { model: 'm', steps: 3 },
  key: undefined,
  priority: 0,
  queueLimit: 10,
  ...more,
});
const step = (jobId: string, number: number): NewEvent => ({
  jobId,
  type: 'step',
  data: { step: number, loss: 2.5, lr: 0.001, gradNorm: 0.5, tokens: 64 * number, tokensPerSecond: 100 },
  key: `step-${number}`,
});

describe('submitJob', () => {
  it('stores the job and its queued event together', () => {
    const { store } = openedStore();
    const { job: stored, created, event } = store.submitJob(job('a'));
    expect(created).toBe(true);
    expect(stored).toMatchObject({
      jobId: 'a',
      state: 'queued',
      lastSeq: 1,
      result: null,
      error: null,
      startedAt: null,
    });
    expect(event).toEqual({ jobId: 'a', seq: 1, at: stored.createdAt, type: 'queued', data: { kind: 'train' } });
    expect(store.readEvents({ jobId: 'a', after: 0, limit: 10 })).toEqual({ events: [event], lastSeq: 1 });
  });

  it('returns the same job for the same key, also when the queue is full', () => {
    const { store } = openedStore();
    store.submitJob(job('a', { key: 'k', queueLimit: 1 }));
    const again = store.submitJob(job('b', { key: 'k', queueLimit: 1, spec: { steps: 3, model: 'm' } }));
    expect(again).toMatchObject({ created: false, event: null, job: { jobId: 'a' } });
    expect(store.listJobs({ all: true, limit: 10, bytesMax: 1e6 }).jobs).toHaveLength(1);
  });

  it('refuses the same key for another spec or another kind', () => {
    const { store } = openedStore();
    store.submitJob(job('a', { key: 'k' }));
    const conflict = expect.objectContaining({ code: 'conflict' }) as Error;
    expect(() => store.submitJob(job('b', { key: 'k', spec: { model: 'm', steps: 4 } }))).toThrow(conflict);
    expect(() => store.submitJob(job('b', { key: 'k', kind: 'generate' }))).toThrow(conflict);
  });

  it('refuses a job beyond the limit of queued jobs, and accepts it when one of them has started', () => {
    const { store } = openedStore();
    store.submitJob(job('a', { queueLimit: 1 }));
    expect(() => store.submitJob(job('b', { queueLimit: 1 }))).toThrow(
      expect.objectContaining({ code: 'queue_full', message: expect.stringContaining('at most 1') as string }) as Error,
    );
    store.appendEvents({ items: [{ jobId: 'a', type: 'started', data: {}, state: 'running' }] });
    expect(store.submitJob(job('b', { queueLimit: 1 })).created).toBe(true);
  });
});

describe('appendEvents', () => {
  it('writes three pages for an event that leaves the state as it is: the event, its key and its job', () => {
    const { store, dataDir } = openedStore();
    store.submitJob(job('a'));
    const token = (index: number): NewEvent => ({ jobId: 'a', type: 'token', data: { index }, key: `token:${index}` });
    const logBytes = (): number => statSync(path.join(dataDir, 'gptd.db-wal')).size;
    store.appendEvents({ items: [{ jobId: 'a', type: 'started', data: {}, state: 'running' }, token(0)] });
    const before = logBytes();
    store.appendEvents({ items: [token(1)] });
    // A page in the log has 32 KiB and a header of 24 bytes.
    expect(logBytes() - before).toBe(3 * (32768 + 24));
    expect(store.getJob({ jobId: 'a' })).toMatchObject({ lastSeq: 4, state: 'running' });
  });

  it('numbers the events of each job without gaps and drops those whose key is known', () => {
    const { store } = openedStore();
    store.submitJob(job('a'));
    store.submitJob(job('b'));
    const { events } = store.appendEvents({ items: [step('a', 1), step('b', 1), step('a', 1), step('a', 2)] });
    expect(events.map((event) => event && [event.jobId, event.seq])).toEqual([['a', 2], ['b', 2], null, ['a', 3]]);
    expect(store.appendEvents({ items: [step('a', 2), step('a', 3)] }).events.map((event) => event?.seq)).toEqual([
      undefined,
      4,
    ]);
    const { events: stored, lastSeq } = store.readEvents({ jobId: 'a', after: 0, limit: 100 });
    expect(stored.map((event) => event.seq)).toEqual([1, 2, 3, 4]);
    expect(lastSeq).toBe(4);
  });

  it('drops events that follow the end of a job, in the same call and later', () => {
    const { store } = openedStore();
    store.submitJob(job('a'));
    const end: NewEvent = { jobId: 'a', type: 'succeeded', data: { result: { step: 3 } }, state: 'succeeded' };
    const { events } = store.appendEvents({ items: [end, step('a', 1)] });
    expect(events.map((event) => event?.seq)).toEqual([2, undefined]);
    expect(
      store.appendEvents({ items: [{ jobId: 'a', type: 'cancelled', data: {}, state: 'cancelled' }] }).events,
    ).toEqual([null]);
    expect(store.getJob({ jobId: 'a' })).toMatchObject({ state: 'succeeded', lastSeq: 2, result: { step: 3 } });
  });

  it('keeps start, end and error on the job', () => {
    const { store } = openedStore();
    store.submitJob(job('a'));
    const [started] = store.appendEvents({
      items: [{ jobId: 'a', type: 'started', data: { workers: 2 }, state: 'running' }],
    }).events;
    expect(store.getJob({ jobId: 'a' })).toMatchObject({ state: 'running', startedAt: started!.at, endedAt: null });
    const error = { code: 'out_of_memory', message: 'The model needs 9 GB.' };
    const [failed] = store.appendEvents({
      items: [{ jobId: 'a', type: 'failed', data: { error }, state: 'failed' }],
    }).events;
    expect(store.getJob({ jobId: 'a' })).toMatchObject({ state: 'failed', endedAt: failed!.at, error, result: null });
  });

  it('stores nothing of a group in which one item is impossible', () => {
    const { store } = openedStore();
    store.submitJob(job('a'));
    expect(() => store.appendEvents({ items: [step('a', 1), step('nobody', 1)] })).toThrow('There is no job nobody.');
    expect(store.readEvents({ jobId: 'a', after: 0, limit: 10 }).lastSeq).toBe(1);
    expect(() => store.appendEvents({ items: [{ jobId: 'a', type: 'log', data: {}, state: 'failed' }] })).toThrow(
      'an event of type log cannot make a job failed',
    );
  });

  it('writes one row of metrics a step', () => {
    const { store, dataDir } = openedStore();
    store.submitJob(job('a'));
    store.appendEvents({ items: [step('a', 1), step('a', 2), step('a', 2)] });
    expect(countRows(dataDir, 'SELECT count(*) FROM metrics')).toBe(2);
    expect(countRows(dataDir, 'SELECT tokens FROM metrics WHERE step = 2')).toBe(128);
    expect(countRows(dataDir, 'SELECT grad_norm FROM metrics WHERE step = 1')).toBe(0.5);
  });
});

describe('reading jobs', () => {
  it('pages through events and filters them by type', () => {
    const { store } = openedStore();
    store.submitJob(job('a'));
    store.appendEvents({ items: [step('a', 1), { jobId: 'a', type: 'log', data: { message: 'x' } }, step('a', 2)] });
    expect(store.readEvents({ jobId: 'a', after: 1, limit: 2 }).events.map((event) => event.seq)).toEqual([2, 3]);
    expect(store.readEvents({ jobId: 'a', after: 2, limit: 9, eventType: 'step' }).events).toMatchObject([
      { seq: 4, data: { step: 2 } },
    ]);
    expect(() => store.readEvents({ jobId: 'b', after: 0, limit: 1 })).toThrow('There is no job b.');
    expect(() => store.getJob({ jobId: 'b' })).toThrow(expect.objectContaining({ code: 'not_found' }) as Error);
  });

  it('lists the newest first and leaves out ended jobs unless asked', () => {
    const { store } = openedStore();
    for (const jobId of ['a', 'b', 'c']) store.submitJob(job(jobId, { kind: jobId === 'b' ? 'generate' : 'train' }));
    store.appendEvents({ items: [{ jobId: 'b', type: 'cancelled', data: {}, state: 'cancelled' }] });
    const list = (input: Partial<Parameters<typeof store.listJobs>[0]>): string[] =>
      store.listJobs({ all: false, limit: 10, bytesMax: 1e6, ...input }).jobs.map(({ jobId }) => jobId);
    expect(list({})).toEqual(['c', 'a']);
    expect(list({ all: true })).toEqual(['c', 'b', 'a']);
    expect(list({ all: true, limit: 1 })).toEqual(['c']);
    expect(list({ kind: 'generate', all: true })).toEqual(['b']);
    expect(list({ state: 'cancelled' })).toEqual(['b']);
  });

  it('lists as many jobs as fit, at least one, and the next page goes on behind the last of them', () => {
    const { store } = openedStore();
    const spec = { prompt: 'ü'.repeat(500) };
    for (const jobId of ['a', 'b', 'c', 'd']) store.submitJob(job(jobId, { spec }));
    const list = (input: Partial<Parameters<typeof store.listJobs>[0]>): unknown => {
      const { jobs, hasMore } = store.listJobs({ all: true, limit: 10, bytesMax: 1e6, ...input });
      return [jobs.map(({ jobId }) => jobId).join(''), hasMore];
    };
    const bytes = Buffer.byteLength(JSON.stringify(spec));
    expect(bytes).toBe(1013);
    expect(list({})).toEqual(['dcba', false]);
    expect(list({ bytesMax: 2 * bytes })).toEqual(['dc', true]);
    expect(list({ bytesMax: 2 * bytes, before: 'c' })).toEqual(['ba', false]);
    expect(list({ bytesMax: 2 * bytes - 1 })).toEqual(['d', true]);
    expect(list({ bytesMax: 1 })).toEqual(['d', true]);
    expect(list({ limit: 3 })).toEqual(['dcb', true]);
    expect(list({ limit: 1, before: 'b' })).toEqual(['a', false]);
    expect(list({ before: 'a' })).toEqual(['', false]);
    expect(() => list({ before: 'nobody' })).toThrow('There is no job nobody.');
  });

  it('queues jobs again that were running when the process ended, and returns them, the oldest first', () => {
    const dataDir = temporaryDirectory();
    const { store } = openedStore(dataDir);
    for (const [i, jobId] of ['a', 'b', 'c'].entries()) store.submitJob(job(jobId, { priority: 10 * i }));
    store.appendEvents({
      items: [
        { jobId: 'a', type: 'log', data: { message: 'paused' }, state: 'paused' },
        { jobId: 'b', type: 'started', data: {}, state: 'running' },
      ],
    });
    store.close();
    const { store: next } = openedStore(dataDir);
    expect(next.recoverJobs({}).jobs.map(({ jobId, state, priority }) => [jobId, state, priority])).toEqual([
      ['a', 'paused', 0],
      ['b', 'running', 10],
      ['c', 'queued', 20],
    ]);
    expect(next.getJob({ jobId: 'a' }).state).toBe('paused');
    expect(next.getJob({ jobId: 'b' }).state).toBe('queued');
  });
});
