// Checks what the store keeps and what it gives back: held checkpoints, blobs to which something refers, and the pages of the
// file.

import { randomBytes } from 'node:crypto';
import { statSync } from 'node:fs';
import path from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, it, onTestFinished, vi } from 'vitest';
import { openReader } from '../../../src/workers/store/reader.ts';
import type { Store } from '../../../src/workers/store/thread.ts';
import { countRows, datasetMeta, openedStore, temporaryDirectory, TINY, writeCheckpoint } from './fixture.ts';

const ORPHANS = `SELECT count(*) FROM chunks WHERE hash NOT IN
  (SELECT hash FROM checkpoint_chunks UNION SELECT hash FROM blob_chunks)`;

const steps = (store: Store): number[] => store.listCheckpoints({ model: 'm' }).checkpoints.map(({ step }) => step);

function submit(store: Store, jobId: string, spec: object): void {
  store.submitJob({ jobId, kind: 'generate', spec, key: undefined, priority: 0, queueLimit: 100 });
}

const end = (store: Store, jobId: string): void =>
  void store.appendEvents({ items: [{ jobId, type: 'cancelled', data: {}, key: 'end', state: 'cancelled' }] });

function upload(store: Store, bytes: Uint8Array): string {
  const { uploadId } = store.beginBlob({});
  store.putBlobChunk({ uploadId, bytes });
  return store.commitBlob({ uploadId }).hash;
}

describe('a checkpoint that a job holds', () => {
  it('can be read until the job has ended, although it was pruned and is not listed', () => {
    const { store, dataDir } = openedStore();
    writeCheckpoint(store, { step: 1, create: true, keepLast: 1 });
    submit(store, 'g', { model: 'm' });
    const { model, checkpoint: held } = store.holdCheckpoint({ jobId: 'g', model: 'm', which: 'latest' });
    expect(model).toEqual(store.getModel({ name: 'm' }));
    expect(held.step).toBe(1);
    for (const step of [2, 3]) writeCheckpoint(store, { step, keepLast: 1 });
    expect(steps(store)).toEqual([3]);
    expect(store.getModel({ name: 'm' }).checkpoint.step).toBe(3);
    // The job gets the same checkpoint again, although a newer one exists.
    expect(store.holdCheckpoint({ jobId: 'g', model: 'm', which: 'latest' }).checkpoint).toEqual(held);
    const reader = openReader(dataDir);
    const read = (): unknown =>
      reader.readTensor({ checkpointId: held.checkpointId, tensor: 'ln_f.bias', part: 'w', sizeBytes: 32 });
    expect(read()).toHaveLength(8);
    end(store, 'g');
    expect(store.tidy({ thorough: false, keepJobs: 10 })).toEqual({ more: false });
    expect(read).toThrow('There is no checkpoint');
    reader.close();
    expect(countRows(dataDir, 'SELECT count(*) FROM checkpoints')).toBe(1);
    expect(countRows(dataDir, ORPHANS)).toBe(0);
  });

  it('is held through a restart, and released when its job has ended meanwhile', () => {
    const dataDir = temporaryDirectory();
    const { store } = openedStore(dataDir);
    writeCheckpoint(store, { step: 1, create: true, keepLast: 1 });
    for (const jobId of ['a', 'b']) {
      submit(store, jobId, { model: 'm' });
      store.holdCheckpoint({ jobId, model: 'm', which: 1 });
    }
    writeCheckpoint(store, { step: 2, keepLast: 1 });
    end(store, 'a');
    store.close();
    const { store: second } = openedStore(dataDir);
    expect(second.holdCheckpoint({ jobId: 'b', model: 'm', which: 'latest' }).checkpoint.step).toBe(1);
    end(second, 'b');
    second.close();
    openedStore(dataDir);
    expect(countRows(dataDir, 'SELECT count(*) FROM checkpoints')).toBe(1);
    expect(countRows(dataDir, 'SELECT count(*) FROM holds')).toBe(0);
  });
});

describe('ended jobs', () => {
  const listed = (store: Store): string[] =>
    store
      .listJobs({ all: true, state: undefined, kind: undefined, limit: 100, bytesMax: 1e6 })
      .jobs.map(({ jobId }) => jobId);
  const tidy = (store: Store, keepJobs: number): number => {
    let calls = 1;
    while (store.tidy({ thorough: false, keepJobs }).more) calls += 1;
    return calls;
  };

  it('go with their events, the oldest first, except the last ones, those that wrote a checkpoint, and those that have not ended', () => {
    const { store, dataDir } = openedStore();
    submit(store, 'waits', { model: 'm' });
    // `writeCheckpoint` names this job as the writer of the checkpoint.
    submit(store, 'job', { model: 'm' });
    writeCheckpoint(store, { step: 1, create: true });
    end(store, 'job');
    for (let i = 0; i < 8; i++) {
      submit(store, `g${i}`, { model: 'm' });
      end(store, `g${i}`);
    }
    tidy(store, 9);
    expect(listed(store)).toHaveLength(10);
    tidy(store, 3);
    expect(listed(store)).toEqual(['g7', 'g6', 'g5', 'job', 'waits']);
    expect(countRows(dataDir, 'SELECT count(*) FROM events')).toBe(4 * 2 + 1);
    expect(() => store.getJob({ jobId: 'g4' })).toThrow('There is no job g4.');
    store.deleteModel({ name: 'm' });
    tidy(store, 3);
    expect(listed(store)).toEqual(['g7', 'g6', 'g5', 'waits']);
  });

  it('go in the order in which they ended, whatever the clock said then', () => {
    const { store } = openedStore();
    const names = ['first', 'second', 'third', 'fourth'];
    // The jobs are submitted in another order than they end.
    for (const name of [...names].reverse()) submit(store, name, { model: 'm' });
    vi.useFakeTimers({ toFake: ['Date'] });
    onTestFinished(() => void vi.useRealTimers());
    for (const [i, day] of [2, 30, 1, 3].entries()) {
      vi.setSystemTime(day * 24 * 3600 * 1000);
      end(store, names[i]);
    }
    tidy(store, 2);
    expect(listed(store)).toEqual(['third', 'fourth']);
  });

  it('go in small steps, and a log without its beginning cannot be read', () => {
    const { store, dataDir } = openedStore();
    const key = 'once';
    const submission = { kind: 'train', spec: { model: 'm' }, key, priority: 0, queueLimit: 100 };
    store.submitJob({ jobId: 'long', ...submission });
    store.appendEvents({
      items: Array.from({ length: 5000 }, (_, i) => ({ jobId: 'long', type: 'step', data: { step: i + 1, loss: 1 } })),
    });
    end(store, 'long');
    submit(store, 'last', { model: 'm' });
    end(store, 'last');
    expect(store.submitJob({ jobId: 'again', ...submission }).created).toBe(false);
    expect(store.tidy({ thorough: false, keepJobs: 1 })).toEqual({ more: true });
    expect(countRows(dataDir, `SELECT count(*) FROM events WHERE job_id = 'long'`)).toBe(3002);
    const read = (after: number): unknown => store.readEvents({ jobId: 'long', after, limit: 10 });
    expect(() => read(0)).toThrow('There is no job long.');
    expect(read(4990)).toMatchObject({ lastSeq: 5002 });
    expect(tidy(store, 1)).toBe(2);
    expect(() => read(4990)).toThrow('There is no job long.');
    expect(countRows(dataDir, 'SELECT count(*) FROM events')).toBe(2);
    // The job's key is free. The curve belongs to the model and stays.
    expect(store.submitJob({ jobId: 'again', ...submission }).created).toBe(true);
    expect(store.readHistory({ model: 'm', after: null, limit: 9000 }).points).toHaveLength(5000);
  });
});

describe('what nothing refers to', () => {
  it('goes with its model, except what another model or a waiting job needs', () => {
    const { store, dataDir } = openedStore();
    const blobs = Array.from({ length: 4 }, () => randomBytes(1000));
    const [ofM, ofBoth, ofJob, unnamed] = blobs.map((bytes) => upload(store, bytes));
    for (const model of ['m', 'n']) writeCheckpoint(store, { step: 1, create: true, model });
    submit(store, 'one', { model: 'm', data: [{ digest: ofM }, { digest: ofBoth }] });
    submit(store, 'two', { model: 'n@1', data: [{ digest: ofBoth }] });
    submit(store, 'three', { model: 'gone', data: [{ digest: ofJob }] });
    const tokens = upload(store, randomBytes(500));
    store.putDataset({ key: 'k', blob: tokens, meta: datasetMeta(250), sources: [ofM] });
    for (const jobId of ['one', 'two']) end(store, jobId);
    const kept = (): boolean[] =>
      [ofM, ofBoth, ofJob, unnamed, tokens].map((hash) => store.hasBlob({ hash }).sizeBytes !== null);
    store.tidy({ thorough: true, keepJobs: 10 });
    expect(kept()).toEqual([true, true, true, true, true]);
    store.deleteModel({ name: 'm' });
    store.tidy({ thorough: true, keepJobs: 10 });
    // A job may still name the blob that none has named yet.
    expect(kept()).toEqual([false, true, true, true, false]);
    expect(store.getDataset({ key: 'k' })).toEqual({ dataset: null });
    expect(countRows(dataDir, ORPHANS)).toBe(0);
  });

  it('is kept for a day that really passes, whatever the clock is set to', () => {
    const dayMs = 24 * 3600 * 1000;
    vi.useFakeTimers({ toFake: ['Date'] });
    onTestFinished(() => void vi.useRealTimers());
    const { store, dataDir } = openedStore();
    const trueMs = Date.now();
    vi.setSystemTime(trueMs - 2 * dayMs);
    const hash = upload(store, randomBytes(100));
    vi.setSystemTime(trueMs + 2 * dayMs);
    store.tidy({ thorough: true, keepJobs: 10 });
    expect(store.hasBlob({ hash }).sizeBytes).toBe(100);
    store.close();
    expect(openedStore(dataDir).store.hasBlob({ hash }).sizeBytes).toBe(null);
  });

  it('is kept for another day when it is uploaded again', () => {
    const { store, dataDir } = openedStore();
    const bytes = randomBytes(100);
    const hash = upload(store, bytes);
    const other = new Database(path.join(dataDir, 'gptd.db'));
    other.exec('UPDATE blobs SET created_at = 0');
    other.close();
    upload(store, bytes);
    store.tidy({ thorough: true, keepJobs: 10 });
    expect(store.hasBlob({ hash }).sizeBytes).toBe(100);
  });

  it('gives its space back to the file system in small steps', () => {
    const { store, dataDir } = openedStore();
    writeCheckpoint(store, { step: 1, create: true });
    const file = path.join(dataDir, 'gptd.db');
    // The file itself becomes smaller only when the log has been copied into it, so this counts pages.
    const sizeBytes = (): number =>
      countRows(dataDir, 'SELECT page_count * page_size FROM pragma_page_count, pragma_page_size');
    const before = sizeBytes();
    const { checkpointId } = store.beginCheckpoint({ model: 'm', step: 2, jobId: 'job', config: TINY });
    const uploadId = store.beginBlob({}).uploadId;
    for (let i = 0; i < 12; i++) store.putBlobChunk({ uploadId, bytes: randomBytes(4 << 20) });
    const full = sizeBytes();
    expect(full).toBeGreaterThan(before + (48 << 20));
    store.abortBlob({ uploadId });
    store.abortCheckpoint({ checkpointId });
    let calls = 1;
    while (store.tidy({ thorough: true, keepJobs: 10 }).more) calls += 1;
    expect(calls).toBeGreaterThan(1);
    expect(sizeBytes()).toBeLessThan(before + (1 << 20));
    expect(countRows(dataDir, 'SELECT count(*) FROM pragma_integrity_check')).toBe(1);
    store.close();
    expect(statSync(file).size).toBeLessThan(before + (1 << 20));
  });
});

it('heals a damaged chunk when the same content is stored again', () => {
  const { store, dataDir } = openedStore();
  const bytes = randomBytes(2000);
  const hash = upload(store, bytes);
  const other = new Database(path.join(dataDir, 'gptd.db'));
  other.prepare('UPDATE chunks SET data = zeroblob(2000)').run();
  other.close();
  expect(() => store.readBlobChunk({ hash, index: 0 })).toThrow('is damaged');
  upload(store, bytes);
  expect(store.readBlobChunk({ hash, index: 0 }).bytes).toEqual(new Uint8Array(bytes));
});
