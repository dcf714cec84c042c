// Blobs: uploaded files and derived data under the SHA-256 of their whole content. Pieces arrive under a row without a hash,
// which nobody sees; the commit compares the streamed digest and sets it. Nothing here knows what the bytes mean.

import { createHash, type Hash } from 'node:crypto';
import type Database from 'better-sqlite3';
import { assert, GptdError } from '../../model/errors.ts';
import { chunkTable, hashFromHex } from './chunks.ts';
import type { Calls } from './schema.ts';

const PURGED_CHUNKS_PER_TRANSACTION = 8;

/** What the store's thread remembers of an upload between its begin and its commit. */
interface Upload {
  readonly hash: Hash;
  sizeBytes: number;
  chunkCount: number;
}

/**
 * Removes every blob without a hash, except the uploads of `keep`, and the chunks that only they named, in short transactions.
 */
function blobPurge(db: Database.Database): (keep: ReadonlySet<number>) => void {
  const chunks = chunkTable(db);
  const selectUnfinished = db.prepare<[], number>('SELECT blob_id FROM blobs WHERE hash IS NULL').pluck();
  const selectSome = db.prepare<[number, number], { chunk_index: number; hash: Buffer }>(
    'SELECT chunk_index, hash FROM blob_chunks WHERE blob_id = ? LIMIT ?',
  );
  const removeRow = db.prepare<[number, number]>('DELETE FROM blob_chunks WHERE blob_id = ? AND chunk_index = ?');
  const removeBlob = db.prepare<[number]>('DELETE FROM blobs WHERE blob_id = ?');
  /** Returns false when nothing of the upload is left. */
  const purgeSome = db.transaction((id: number): boolean => {
    const rows = selectSome.all(id, PURGED_CHUNKS_PER_TRANSACTION);
    for (const row of rows) removeRow.run(id, row.chunk_index);
    for (const row of rows) chunks.free(row.hash);
    if (rows.length === 0) removeBlob.run(id);
    return rows.length > 0;
  });
  return (keep) => {
    for (const id of selectUnfinished.all()) {
      if (keep.has(id)) continue;
      while (purgeSome.immediate(id));
    }
  };
}

type BlobCalls = Calls<'hasBlob' | 'beginBlob' | 'putBlobChunk' | 'commitBlob' | 'abortBlob' | 'readBlobChunk'>;

/**
 * The store's calls about blobs, and `purge`, which removes the uploads that nobody continues. `now` gives the time from which a
 * blob's age counts.
 */
export function blobCalls(db: Database.Database, now: () => number): BlobCalls & { readonly purge: () => void } {
  const chunks = chunkTable(db);
  const uploads = new Map<number, Upload>();
  const purgeExcept = blobPurge(db);
  const purge = (): void => purgeExcept(new Set(uploads.keys()));

  const insertBlob = db.prepare<[number]>('INSERT INTO blobs (created_at) VALUES (?)');
  const insertChunk = db.prepare<[number, number, number, number, Buffer]>(
    'INSERT INTO blob_chunks (blob_id, chunk_index, offset_bytes, size_bytes, hash) VALUES (?, ?, ?, ?, ?)',
  );
  const publish = db.prepare<[Buffer, number, number]>('UPDATE blobs SET hash = ?, size_bytes = ? WHERE blob_id = ?');
  const renew = db.prepare<[number, Buffer]>('UPDATE blobs SET created_at = ? WHERE hash = ?');
  const selectSize = db.prepare<[Buffer], number>('SELECT size_bytes FROM blobs WHERE hash = ?').pluck();
  const selectChunk = db
    .prepare<[Buffer, number], Buffer>(
      `SELECT blob_chunks.hash FROM blobs JOIN blob_chunks USING (blob_id) WHERE blobs.hash = ? AND chunk_index = ?`,
    )
    .pluck();

  function requireUpload(id: number): Upload {
    const upload = uploads.get(id);
    assert(upload !== undefined, `upload ${id} is not in progress`);
    return upload;
  }

  const putChunk = db.transaction((id: number, { bytes, upload }: { bytes: Uint8Array; upload: Upload }): void => {
    insertChunk.run(id, upload.chunkCount, upload.sizeBytes, bytes.length, chunks.put(bytes));
  });

  return {
    purge,
    hasBlob: ({ hash }) => ({ sizeBytes: selectSize.get(hashFromHex(hash)) ?? null }),
    beginBlob: () => {
      const id = Number(insertBlob.run(now()).lastInsertRowid);
      uploads.set(id, { hash: createHash('sha256'), sizeBytes: 0, chunkCount: 0 });
      return { uploadId: id };
    },
    putBlobChunk: ({ uploadId, bytes }) => {
      const upload = requireUpload(uploadId);
      putChunk.immediate(uploadId, { bytes, upload });
      upload.hash.update(bytes);
      upload.sizeBytes += bytes.length;
      upload.chunkCount += 1;
      return {};
    },
    commitBlob: ({ uploadId, hash: wanted }) => {
      const { hash: streamed, sizeBytes } = requireUpload(uploadId);
      const wantedHash = wanted === undefined ? undefined : hashFromHex(wanted);
      uploads.delete(uploadId);
      const digest = streamed.digest();
      const hash = digest.toString('hex');
      const refused = wantedHash !== undefined && !wantedHash.equals(digest);
      const known = selectSize.get(digest) !== undefined;
      if (!refused && !known) publish.run(digest, sizeBytes, uploadId);
      else {
        // A refused upload and one whose content was there already are now unfinished rows that nobody continues.
        purge();
        if (!refused) renew.run(now(), digest);
      }
      if (refused) {
        throw new GptdError(
          'corrupt',
          `The content has the digest ${hash}: it must be ${wantedHash.toString('hex')}. Send the file again.`,
        );
      }
      return { hash, sizeBytes };
    },
    abortBlob: ({ uploadId }) => {
      uploads.delete(uploadId);
      purge();
      return {};
    },
    readBlobChunk: ({ hash, index }) => {
      if (selectSize.get(hashFromHex(hash)) === undefined)
        throw new GptdError('not_found', `There is no blob ${hash}.`);
      const chunk = selectChunk.get(hashFromHex(hash), index);
      if (chunk === undefined) return { bytes: null };
      const bytes = chunks.get(chunk);
      if (bytes === null)
        throw new GptdError('corrupt', `Chunk ${index} of blob ${hash} is damaged: upload the file again.`);
      return { bytes };
    },
  };
}
