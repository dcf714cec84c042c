// Checks rows that an older version wrote, and rows that are damaged: the error names the row, and requests that do not need the
// row succeed.

import { describe, expect, it } from 'vitest';
import type { NewJob, StoredJob } from '../../../src/workers/store/messages.ts';
import type { Store } from '../../../src/workers/store/thread.ts';
import { damage, datasetMeta, openedStore, TINY, writeCheckpoint } from './fixture.ts';

const corrupt = (message: string): Error =>
  expect.objectContaining({ code: 'corrupt', message: expect.stringContaining(message) as string }) as Error;

const submission = (jobId: string, more: Partial<NewJob> = {}): NewJob => ({
  jobId,
  kind: 'train',
  spec: { model: 'm', steps: 3 },
  key: undefined,
  priority: 0,
  queueLimit: 10,
  ...more,
});

const list = (store: Store): readonly StoredJob[] => store.listJobs({ all: true, limit: 10, bytesMax: 1e6 }).jobs;

describe('a damaged job', () => {
  const DAMAGED = corrupt('The stored spec of the job bad is damaged');

  it('fails by itself when the daemon starts, and the others go on', () => {
    const { store, dataDir } = openedStore();
    for (const jobId of ['first', 'bad', 'last']) store.submitJob(submission(jobId));
    store.appendEvents({ items: [{ jobId: 'bad', type: 'started', data: {}, state: 'running' }] });
    store.close();
    damage(dataDir, `UPDATE jobs SET spec = '{"model":"m"' WHERE job_id = 'bad'`);

    const { store: next } = openedStore(dataDir);
    expect(next.recoverJobs({}).jobs.map(({ jobId }) => jobId)).toEqual(['first', 'last']);
    expect(next.getJob({ jobId: 'bad' })).toMatchObject({ state: 'failed', spec: null, error: DAMAGED, lastSeq: 3 });
    const { events } = next.readEvents({ jobId: 'bad', after: 2, limit: 10 });
    expect(events).toMatchObject([{ seq: 3, type: 'failed', data: { error: DAMAGED } }]);
    expect(next.recoverJobs({}).jobs).toHaveLength(2);
  });

  it('is listed with the others, whatever is damaged, and keeps its end if it had one', () => {
    const { store, dataDir } = openedStore();
    for (const jobId of ['good', 'bad']) store.submitJob(submission(jobId));
    store.appendEvents({ items: [{ jobId: 'bad', type: 'succeeded', data: { result: { loss: 1 } } }] });
    damage(dataDir, `UPDATE jobs SET result = 'no JSON' WHERE job_id = 'bad'`);
    expect(list(store)).toMatchObject([
      { jobId: 'bad', state: 'succeeded', result: null, error: corrupt('The stored result of the job bad') },
      { jobId: 'good', state: 'queued', error: null },
    ]);
    damage(dataDir, `UPDATE jobs SET state = 'lost' WHERE job_id = 'bad'`);
    expect(store.getJob({ jobId: 'bad' })).toMatchObject({ state: 'failed', error: corrupt('it is "lost"') });
  });

  it('is named when its key is used again, and when an event of it is read', () => {
    const { store, dataDir } = openedStore();
    store.submitJob(submission('bad', { key: 'k' }));
    damage(dataDir, `UPDATE events SET data = '{' WHERE job_id = 'bad'`);
    expect(() => store.readEvents({ jobId: 'bad', after: 0, limit: 1 })).toThrow(corrupt('event 1 of the job bad'));
    damage(dataDir, `UPDATE jobs SET spec = '' WHERE job_id = 'bad'`);
    expect(() => store.submitJob(submission('again', { key: 'k' }))).toThrow(corrupt('The stored spec of the job bad'));
  });

  it('does not keep the store from opening, and neither does a damaged dataset', () => {
    const { store, dataDir } = openedStore();
    const { uploadId } = store.beginBlob({});
    store.putBlobChunk({ uploadId, bytes: new Uint8Array(10) });
    const { hash } = store.commitBlob({ uploadId });
    store.putDataset({ key: 'k', blob: hash, meta: datasetMeta(5), sources: [hash] });
    store.submitJob(submission('bad', { spec: { model: 'm', data: [{ digest: hash }] } }));
    store.appendEvents({ items: [{ jobId: 'bad', type: 'cancelled', data: {} }] });
    store.close();
    damage(dataDir, `UPDATE jobs SET spec = substr(spec, 1, length(spec) - 1); UPDATE datasets SET sources = '['`);
    const { store: next } = openedStore(dataDir);
    expect(next.getDataset({ key: 'k' })).toEqual({ dataset: null });
    expect(next.getJob({ jobId: 'bad' })).toMatchObject({ state: 'cancelled', error: DAMAGED });
  });
});

describe('a job of another version', () => {
  it('keeps its kind and its spec as they are', () => {
    const { store } = openedStore();
    const { job } = store.submitJob(submission('new', { kind: 'distil', spec: { teacher: 'm' } }));
    expect(job).toMatchObject({ kind: 'distil', spec: { teacher: 'm' }, error: null });
    expect(store.recoverJobs({}).jobs).toEqual([job]);
  });

  it('has an error whose code this version knows', () => {
    const { store, dataDir } = openedStore();
    store.submitJob(submission('a'));
    const error = { code: 'cancelled', message: 'Stopped.' };
    store.appendEvents({ items: [{ jobId: 'a', type: 'failed', data: { error } }] });
    expect(store.getJob({ jobId: 'a' }).error).toEqual(error);
    damage(dataDir, `UPDATE jobs SET error = '{"code":"melted","message":"Too hot."}'`);
    expect(store.getJob({ jobId: 'a' }).error).toEqual({ code: 'engine_failed', message: 'Too hot.' });
  });
});

describe('a damaged model', () => {
  it.each([
    ['config', '{"vocab_size":40}', 'The stored configuration of the model m is damaged (context_length is undefined'],
    ['config', '[]', 'The stored configuration of the model m is damaged (It is no object)'],
    ['tokenizer', '{"type":"words"}', 'The stored tokenizer of the model m is damaged'],
    ['tokenizer', '', 'The stored tokenizer of the model m is damaged'],
  ])('with the %s %s is named, and hides no other', (column, value, message) => {
    const { store, dataDir } = openedStore();
    for (const model of ['m', 'n']) writeCheckpoint(store, { model, step: 0, create: true });
    damage(dataDir, `UPDATE models SET ${column} = '${value}' WHERE name = 'm'`);
    expect(() => store.getModel({ name: 'm' })).toThrow(corrupt(message));
    expect(store.listModels({}).models).toMatchObject([{ name: 'n', config: TINY, tokenizer: { type: 'byte' } }]);
    expect(store.deleteModel({ name: 'm' })).toEqual({});
  });
});

describe('the description of a checkpoint', () => {
  const setMeta = (dataDir: string, meta: string): void => damage(dataDir, `UPDATE checkpoints SET meta = '${meta}'`);

  it('has defaults for what older versions did not write', () => {
    const { store, dataDir } = openedStore();
    writeCheckpoint(store, { step: 0, create: true });
    const training = { baseStep: 0, baseUpdates: 0, tokens: 64 };
    setMeta(dataDir, JSON.stringify({ fingerprint: 'old', loss: 2.5, training }));
    expect(store.getCheckpoint({ model: 'm', which: 0 }).meta).toEqual({
      fingerprint: 'old',
      loss: 2.5,
      valLoss: null,
      training: { ...training, chainStart: null, chain: null, best: null, evaluationsSinceBest: 0 },
    });
    setMeta(dataDir, JSON.stringify({ fingerprint: 'old', loss: null, valLoss: null }));
    expect(store.getModel({ name: 'm' }).checkpoint.meta).toEqual({ fingerprint: 'old', loss: null, valLoss: null });
  });

  it.each([
    '{',
    'null',
    '{"loss":1}',
    '{"fingerprint":"x","loss":"low"}',
    '{"fingerprint":"x","training":{"baseStep":1}}',
  ])('is corrupt as %s, by the name of the checkpoint', (meta) => {
    const { store, dataDir } = openedStore();
    writeCheckpoint(store, { step: 7, create: true });
    setMeta(dataDir, meta);
    const message = 'The stored record of the checkpoint of m at step 7 is damaged';
    expect(() => store.getCheckpoint({ model: 'm', which: 'latest' })).toThrow(corrupt(message));
    expect(() => store.listCheckpoints({ model: 'm' })).toThrow(corrupt(message));
  });

  it('hides no other one when it is damaged', () => {
    const { store, dataDir } = openedStore();
    writeCheckpoint(store, { step: 0, create: true });
    writeCheckpoint(store, { step: 7 });
    damage(dataDir, `UPDATE checkpoints SET meta = '{' WHERE step = 0`);
    expect(store.listCheckpoints({ model: 'm' }).checkpoints.map(({ step }) => step)).toEqual([7]);
    expect(() => store.getCheckpoint({ model: 'm', which: 0 })).toThrow(corrupt('of m at step 0 is damaged'));
  });
});

it('a dataset whose description is damaged is as good as absent', () => {
  const { store, dataDir } = openedStore();
  const { uploadId } = store.beginBlob({});
  store.putBlobChunk({ uploadId, bytes: new Uint8Array(10) });
  const { hash } = store.commitBlob({ uploadId });
  store.putDataset({ key: 'k', blob: hash, meta: datasetMeta(5), sources: [] });
  expect(store.getDataset({ key: 'k' }).dataset?.meta).toEqual(datasetMeta(5));
  damage(dataDir, `UPDATE datasets SET meta = json_remove(meta, '$.wideTokens')`);
  expect(store.getDataset({ key: 'k' })).toEqual({ dataset: null });
});
