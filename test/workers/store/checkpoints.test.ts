import { createHash } from 'node:crypto';
import path from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, it } from 'vitest';
import { tensorTable } from '../../../src/model/tensors.ts';
import { openReader } from '../../../src/workers/store/reader.ts';
import type { Store } from '../../../src/workers/store/thread.ts';
import { countRows, numbers, openedStore, temporaryDirectory, TINY, tinyChunks, writeCheckpoint } from './fixture.ts';

const code = (name: string): Error => expect.objectContaining({ code: name }) as Error;
const steps = (store: Store, model = 'm'): number[] =>
  store.listCheckpoints({ model }).checkpoints.map((checkpoint) => checkpoint.step);
const CHUNKS = 'SELECT count(*) FROM chunks';
/** Counts the chunks that no row names and the rows that name no chunk. */
const ORPHANS = `SELECT count(*) FROM chunks WHERE hash NOT IN
  (SELECT hash FROM checkpoint_chunks UNION SELECT hash FROM blob_chunks)`;

describe('a committed checkpoint', () => {
  it('has the digest that anyone computes from the table and the bytes', () => {
    const { store } = openedStore();
    const checkpoint = writeCheckpoint(store, { step: 5, create: true });
    const hash = createHash('sha256');
    for (const { name, shape, size } of tensorTable(TINY)) {
      hash.update(`${name} ${shape.join(',')}\n`);
      hash.update(Buffer.from(numbers(size, { seed: 5, name: 'w' + name }).buffer));
    }
    expect(checkpoint.digest).toBe(hash.digest('hex'));
    const weightBytes = tensorTable(TINY).reduce((sum, { size }) => sum + 4 * size, 0);
    expect(checkpoint).toMatchObject({ model: 'm', step: 5, jobId: 'job', optimizer: false, bytes: weightBytes });
    const full = writeCheckpoint(store, { step: 6, seedOf: () => 5, optimizer: true });
    expect(full).toMatchObject({ digest: checkpoint.digest, optimizer: true, bytes: 3 * weightBytes });
  });

  it('gives back every tensor and part bit for bit', () => {
    const { store, dataDir } = openedStore();
    const { checkpointId } = writeCheckpoint(store, { step: 1, create: true, optimizer: true });
    const reader = openReader(dataDir);
    for (const part of ['w', 'm', 'v'] as const) {
      for (const { name, size } of tensorTable(TINY)) {
        const array = reader.readTensor({ checkpointId, tensor: name, part, sizeBytes: 4 * size });
        expect(array).toEqual(numbers(size, { seed: 1, name: part + name }));
      }
    }
    const { checkpointId: light } = writeCheckpoint(store, { step: 2 });
    const bias = { checkpointId: light, tensor: 'ln_f.bias', sizeBytes: 32 };
    expect(reader.readTensor({ ...bias, part: 'w' })).toHaveLength(8);
    expect(() => reader.readTensor({ ...bias, part: 'm' })).toThrow(code('corrupt'));
    reader.close();
    reader.close();
  });

  it('shares the chunks of equal tensors with other checkpoints', () => {
    const { store, dataDir } = openedStore();
    writeCheckpoint(store, { step: 0, create: true, seedOf: () => 7 });
    const before = countRows(dataDir, CHUNKS);
    writeCheckpoint(store, { step: 1, seedOf: () => 7 });
    expect(countRows(dataDir, CHUNKS)).toBe(before);
    writeCheckpoint(store, { step: 2, seedOf: (name) => (name === 'wpe.weight' ? 8 : 7) });
    // wpe has 8 x 8 numbers, which are one chunk of 256 bytes.
    expect(countRows(dataDir, CHUNKS)).toBe(before + 1);
  });

  it('replaces a checkpoint of the same model and step', () => {
    const { store, dataDir } = openedStore();
    const first = writeCheckpoint(store, { step: 1, create: true, seedOf: () => 1 });
    const second = writeCheckpoint(store, { step: 1, seedOf: () => 2 });
    expect(store.listCheckpoints({ model: 'm' }).checkpoints).toEqual([second]);
    expect(second.digest).not.toBe(first.digest);
    expect(countRows(dataDir, ORPHANS)).toBe(0);
    expect(countRows(dataDir, 'SELECT count(*) FROM checkpoints')).toBe(1);
  });
});

describe('a checkpoint that is not committed', () => {
  it('is invisible, and gone with its chunks at the next open', () => {
    const dataDir = temporaryDirectory();
    const { store } = openedStore(dataDir);
    writeCheckpoint(store, { step: 1, create: true });
    const before = countRows(dataDir, CHUNKS);
    const { checkpointId } = store.beginCheckpoint({ model: 'm', step: 2, jobId: 'job', config: TINY });
    store.putChunks({ checkpointId, chunks: tinyChunks('w', () => 2) });
    expect(countRows(dataDir, CHUNKS)).toBeGreaterThan(before);
    expect(steps(store)).toEqual([1]);
    expect(store.getModel({ name: 'm' }).checkpoint.step).toBe(1);
    const reader = openReader(dataDir);
    expect(() => reader.readTensor({ checkpointId, tensor: 'ln_f.bias', part: 'w', sizeBytes: 32 })).toThrow(
      code('not_found'),
    );
    reader.close();
    store.close();

    const { store: next } = openedStore(dataDir);
    expect(steps(next)).toEqual([1]);
    expect(countRows(dataDir, CHUNKS)).toBe(before);
    expect(countRows(dataDir, 'SELECT count(*) FROM checkpoints')).toBe(1);
  });

  it('disappears when aborted, and leaves another one in progress alone', () => {
    const { store, dataDir } = openedStore();
    const { checkpointId: kept } = store.beginCheckpoint({ model: 'm', step: 1, jobId: 'job', config: TINY });
    const { checkpointId: aborted } = store.beginCheckpoint({ model: 'n', step: 1, jobId: 'other', config: TINY });
    store.putChunks({ checkpointId: kept, chunks: tinyChunks('w', () => 1) });
    store.putChunks({ checkpointId: aborted, chunks: tinyChunks('w', (name) => (name === 'wte.weight' ? 1 : 2)) });
    store.abortCheckpoint({ checkpointId: aborted });
    expect(countRows(dataDir, ORPHANS)).toBe(0);
    const newModel = { name: 'm', config: TINY, tokenizer: null };
    const meta = { fingerprint: 'test', loss: null, valLoss: null };
    expect(store.commitCheckpoint({ checkpointId: kept, meta, newModel }).checkpoint.step).toBe(1);
    expect(() => store.commitCheckpoint({ checkpointId: aborted, meta, newModel })).toThrow('is not being written');
  });

  it('cannot be committed while bytes are missing, nor take bytes out of order', () => {
    const { store } = openedStore();
    const chunks = tinyChunks('w', () => 1);
    const { checkpointId } = store.beginCheckpoint({ model: 'm', step: 1, jobId: 'job', config: TINY });
    expect(() => store.putChunks({ checkpointId, chunks: [chunks[1]] })).toThrow('expected it at 0');
    store.abortCheckpoint({ checkpointId });
    const { checkpointId: second } = store.beginCheckpoint({ model: 'm', step: 1, jobId: 'job', config: TINY });
    store.putChunks({ checkpointId: second, chunks: chunks.slice(0, -1) });
    const meta = { fingerprint: 'test', loss: null, valLoss: null };
    const commit = { checkpointId: second, meta, newModel: { name: 'm', config: TINY, tokenizer: null } };
    expect(() => store.commitCheckpoint(commit)).toThrow('lacks weights');
    expect(store.listModels({}).models).toEqual([]);
  });
});

describe('models', () => {
  it('have names that are unique', () => {
    const { store } = openedStore();
    writeCheckpoint(store, { step: 0, create: true });
    expect(() => writeCheckpoint(store, { step: 1, create: true })).toThrow(code('conflict'));
    expect(steps(store)).toEqual([0]);
    expect(() => writeCheckpoint(store, { model: 'gone', step: 1 })).toThrow(code('not_found'));
  });

  it('are listed with their newest checkpoint and change their tokenizer', () => {
    const { store } = openedStore();
    writeCheckpoint(store, { model: 'b', step: 0, create: true });
    writeCheckpoint(store, { model: 'a', step: 9, create: true });
    writeCheckpoint(store, { model: 'a', step: 3, jobId: 'later' });
    store.setTokenizer({ name: 'a', tokenizer: { type: 'char', alphabet: 'xyz' } });
    expect(store.listModels({}).models).toMatchObject([
      { name: 'a', config: TINY, tokenizer: { type: 'char', alphabet: 'xyz' }, checkpoint: { step: 3 } },
      { name: 'b', tokenizer: { type: 'byte' }, checkpoint: { step: 0 } },
    ]);
    expect(() => store.setTokenizer({ name: 'c', tokenizer: null })).toThrow(code('not_found'));
  });

  it('free the chunks that only they used when deleted', () => {
    const { store, dataDir } = openedStore();
    const only = (seed: number) => (name: string) => (name === 'wte.weight' ? seed : 1);
    writeCheckpoint(store, { model: 'a', step: 0, create: true, seedOf: only(1) });
    const before = countRows(dataDir, CHUNKS);
    writeCheckpoint(store, { model: 'b', step: 0, create: true, seedOf: only(2), optimizer: true });
    writeCheckpoint(store, { model: 'b', step: 1, seedOf: only(3) });
    store.deleteModel({ name: 'b' });
    expect(countRows(dataDir, CHUNKS)).toBe(before);
    expect(countRows(dataDir, 'SELECT count(*) FROM checkpoints')).toBe(1);
    expect(() => store.deleteModel({ name: 'b' })).toThrow(code('not_found'));
    expect(() => store.getModel({ name: 'b' })).toThrow(code('not_found'));
    expect(steps(store, 'a')).toEqual([0]);
  });
});

describe('keepLast', () => {
  it('drops older checkpoints of the same job but never the best, and frees their chunks', () => {
    const { store, dataDir } = openedStore();
    writeCheckpoint(store, { step: 0, jobId: 'create', create: true });
    const valLosses = [3, 1, 2, 2.5, 2.7];
    valLosses.forEach((valLoss, i) => {
      writeCheckpoint(store, { step: i + 1, valLoss, keepLast: 2 });
      expect(countRows(dataDir, ORPHANS)).toBe(0);
    });
    // Step 0 belongs to another job, and step 2 is the best one.
    expect(steps(store)).toEqual([0, 2, 4, 5]);
    expect(countRows(dataDir, 'SELECT count(*) FROM checkpoints')).toBe(4);
    const distinct = 'SELECT count(DISTINCT hash) FROM checkpoint_chunks';
    expect(countRows(dataDir, CHUNKS)).toBe(countRows(dataDir, distinct));
    expect(store.getCheckpoint({ model: 'm', which: 'best' }).step).toBe(2);
    expect(store.getCheckpoint({ model: 'm', which: 'latest' }).step).toBe(5);
    expect(store.getCheckpoint({ model: 'm', which: 4 }).step).toBe(4);
    expect(() => store.getCheckpoint({ model: 'm', which: 3 })).toThrow('The model m has no checkpoint of step 3.');
    expect(() => store.getCheckpoint({ model: 'x', which: 3 })).toThrow('There is no model x.');
  });

  it('has no best without a validation loss', () => {
    const { store } = openedStore();
    writeCheckpoint(store, { step: 0, create: true });
    expect(() => store.getCheckpoint({ model: 'm', which: 'best' })).toThrow(code('not_found'));
  });
});

describe('a damaged checkpoint', () => {
  const read = (dataDir: string, checkpointId: number): Float32Array => {
    const reader = openReader(dataDir);
    try {
      return reader.readTensor({ checkpointId, tensor: 'wte.weight', part: 'w', sizeBytes: 40 * 8 * 4 });
    } finally {
      reader.close();
    }
  };

  it('is detected after one flipped bit and named', () => {
    const { store, dataDir } = openedStore();
    const { checkpointId } = writeCheckpoint(store, { step: 0, create: true });
    expect(read(dataDir, checkpointId)).toHaveLength(320);
    store.close();
    const db = new Database(path.join(dataDir, 'gptd.db'));
    const chunk = db
      .prepare<[], { hash: Buffer; data: Buffer }>(
        `SELECT chunks.* FROM chunks JOIN checkpoint_chunks USING (hash) WHERE tensor = 'wte.weight' AND offset_bytes = 300`,
      )
      .get()!;
    chunk.data[17] ^= 4;
    db.prepare('UPDATE chunks SET data = ? WHERE hash = ?').run(chunk.data, chunk.hash);
    db.close();
    expect(() => read(dataDir, checkpointId)).toThrow(
      expect.objectContaining({
        code: 'corrupt',
        message: `The stored data of tensor wte.weight (w) of checkpoint ${checkpointId} is damaged: its digest does not match.`,
      }) as Error,
    );
  });

  it('is detected when a chunk is missing', () => {
    const { store, dataDir } = openedStore();
    const { checkpointId } = writeCheckpoint(store, { step: 0, create: true });
    store.close();
    const db = new Database(path.join(dataDir, 'gptd.db'));
    db.pragma('foreign_keys = OFF');
    db.exec(`DELETE FROM chunks WHERE hash IN (SELECT hash FROM checkpoint_chunks WHERE tensor = 'wte.weight')`);
    db.close();
    expect(() => read(dataDir, checkpointId)).toThrow(code('corrupt'));
  });
});
