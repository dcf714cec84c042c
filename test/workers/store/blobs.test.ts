import { createHash, randomBytes } from 'node:crypto';
import path from 'node:path';
import Database from 'better-sqlite3';
import { describe, expect, it } from 'vitest';
import { openReader } from '../../../src/workers/store/reader.ts';
import type { Store } from '../../../src/workers/store/thread.ts';
import { countRows, datasetMeta, openedStore, temporaryDirectory } from './fixture.ts';

const code = (name: string): Error => expect.objectContaining({ code: name }) as Error;
const hexDigest = (bytes: Uint8Array): string => createHash('sha256').update(bytes).digest('hex');
const NOWHERE = '0'.repeat(64);

/** Uploads `bytes` in pieces of the given sizes; the last size repeats. */
function upload(
  store: Store,
  bytes: Uint8Array,
  { sizes = [100], hash }: { sizes?: number[]; hash?: string } = {},
): string {
  const { uploadId } = store.beginBlob({});
  for (let offset = 0, i = 0; offset < bytes.length; i++) {
    const size = sizes[Math.min(i, sizes.length - 1)];
    store.putBlobChunk({ uploadId, bytes: bytes.slice(offset, offset + size) });
    offset += size;
  }
  return store.commitBlob({ uploadId, hash }).hash;
}

describe('blobs', () => {
  it('are found under the digest of their content, whatever the pieces', () => {
    const { store, dataDir } = openedStore();
    const bytes = randomBytes(1000);
    const hash = upload(store, bytes, { sizes: [1, 7, 300] });
    expect(hash).toBe(hexDigest(bytes));
    expect(store.hasBlob({ hash })).toEqual({ sizeBytes: 1000 });
    expect(store.hasBlob({ hash: NOWHERE })).toEqual({ sizeBytes: null });
    expect(upload(store, bytes, { sizes: [512], hash })).toBe(hash);
    expect(countRows(dataDir, 'SELECT count(*) FROM blobs')).toBe(1);
    expect(countRows(dataDir, 'SELECT count(*) FROM chunks')).toBe(6);
    const pieces = Array.from({ length: 7 }, (_, index) => store.readBlobChunk({ hash, index }).bytes);
    expect(pieces[6]).toBeNull();
    expect(Buffer.concat(pieces.slice(0, 6) as Uint8Array[])).toEqual(bytes);
  });

  it('may be empty', () => {
    const { store, dataDir } = openedStore();
    const hash = upload(store, new Uint8Array());
    expect(store.hasBlob({ hash })).toEqual({ sizeBytes: 0 });
    expect(store.readBlobChunk({ hash, index: 0 })).toEqual({ bytes: null });
    const reader = openReader(dataDir);
    expect(reader.readBlob(hash)).toHaveLength(0);
    expect([...reader.blobChunks(hash)]).toEqual([]);
    reader.close();
  });

  it('are refused when the content has another digest, and leave nothing behind', () => {
    const { store, dataDir } = openedStore();
    expect(() => upload(store, randomBytes(500), { hash: NOWHERE })).toThrow(code('corrupt'));
    expect(countRows(dataDir, 'SELECT count(*) FROM chunks')).toBe(0);
    expect(countRows(dataDir, 'SELECT count(*) FROM blobs')).toBe(0);
    expect(() => store.hasBlob({ hash: '../../etc/passwd' })).toThrow(code('invalid_spec'));
  });

  it('are invisible until the commit and purged at the next open', () => {
    const dataDir = temporaryDirectory();
    const { store } = openedStore(dataDir);
    const bytes = randomBytes(2000);
    const { uploadId } = store.beginBlob({});
    store.putBlobChunk({ uploadId, bytes });
    const { uploadId: aborted } = store.beginBlob({});
    store.putBlobChunk({ uploadId: aborted, bytes: randomBytes(10) });
    store.abortBlob({ uploadId: aborted });
    expect(countRows(dataDir, 'SELECT count(*) FROM chunks')).toBe(1);
    expect(store.hasBlob({ hash: hexDigest(bytes) })).toEqual({ sizeBytes: null });
    store.close();
    openedStore(dataDir);
    expect(countRows(dataDir, 'SELECT count(*) FROM chunks')).toBe(0);
    expect(countRows(dataDir, 'SELECT count(*) FROM blobs')).toBe(0);
  });

  it('are read by other connections whole, by chunk and by range', () => {
    const { store, dataDir } = openedStore();
    const bytes = randomBytes(1000);
    const hash = upload(store, bytes, { sizes: [10, 300] });
    const reader = openReader(dataDir);
    expect(reader.blobSize(hash)).toBe(1000);
    expect(Buffer.from(reader.readBlob(hash))).toEqual(bytes);
    expect([...reader.blobChunks(hash)].map((chunk) => chunk.length)).toEqual([10, 300, 300, 300, 90]);
    for (const [offset, length] of [
      [0, 1],
      [9, 2],
      [10, 300],
      [305, 400],
      [999, 1],
      [1000, 0],
      [0, 1000],
    ] as const) {
      const range = reader.readBlobRange({ hash, offset, length });
      expect(Buffer.from(range)).toEqual(bytes.subarray(offset, offset + length));
    }
    expect(() => reader.readBlobRange({ hash, offset: 1, length: 1000 })).toThrow('of a blob of 1000');
    expect(() => reader.readBlob(NOWHERE)).toThrow(code('not_found'));
    expect(() => store.readBlobChunk({ hash: NOWHERE, index: 0 })).toThrow(code('not_found'));
    reader.close();
  });

  it('are reported as corrupt when a chunk was overwritten', () => {
    const { store, dataDir } = openedStore();
    const hash = upload(store, randomBytes(250));
    store.close();
    const db = new Database(path.join(dataDir, 'gptd.db'));
    db.exec(`UPDATE chunks SET data = zeroblob(50) WHERE length(data) = 50`);
    db.close();
    const { store: next } = openedStore(dataDir);
    expect(next.readBlobChunk({ hash, index: 0 }).bytes).toHaveLength(100);
    expect(() => next.readBlobChunk({ hash, index: 2 })).toThrow(code('corrupt'));
    const reader = openReader(dataDir);
    expect(() => reader.readBlob(hash)).toThrow(code('corrupt'));
    expect(() => [...reader.blobChunks(hash)]).toThrow(code('corrupt'));
    expect(reader.readBlobRange({ hash, offset: 100, length: 100 })).toHaveLength(100);
    reader.close();
  });
});

describe('datasets', () => {
  it('keep the newest blob under a key', () => {
    const { store } = openedStore();
    const [first, second] = [upload(store, randomBytes(9)), upload(store, randomBytes(9))];
    expect(store.getDataset({ key: 'k' })).toEqual({ dataset: null });
    store.putDataset({ key: 'k', blob: first, meta: datasetMeta(4), sources: [] });
    store.putDataset({ key: 'k', blob: second, meta: datasetMeta(5), sources: [first] });
    expect(store.getDataset({ key: 'k' })).toEqual({
      dataset: { key: 'k', blob: second, meta: datasetMeta(5), sources: [first] },
    });
    expect(() => store.putDataset({ key: 'k', blob: NOWHERE, meta: datasetMeta(4), sources: [] })).toThrow(
      code('not_found'),
    );
  });
});
