// Content-addressed chunks: a chunk's name is the SHA-256 of its bytes, so equal content is stored once, and whoever reads it
// can tell whether it is still what was written. A chunk lives while a row of a checkpoint or of a blob names it.

import { createHash } from 'node:crypto';
import type Database from 'better-sqlite3';
import { assert, GptdError } from '../../model/errors.ts';
import { CHUNK_BYTES_MAX } from './messages.ts';

export const sha256 = (bytes: Uint8Array): Buffer => createHash('sha256').update(bytes).digest();

/** The 32 bytes behind 64 hexadecimal digits. Throws `invalid_spec` for any other text. */
export function hashFromHex(hex: string): Buffer {
  if (!/^[0-9a-f]{64}$/.test(hex)) {
    throw new GptdError('invalid_spec', `"${hex.slice(0, 80)}" is no digest: it must be 64 hexadecimal digits.`);
  }
  return Buffer.from(hex, 'hex');
}

interface ChunkTable {
  /**
   * Stores `bytes` (1 to CHUNK_BYTES_MAX) unless they are there, and returns their hash. The caller names the chunk in the same
   * transaction.
   */
  put(bytes: Uint8Array): Buffer;
  /** The verified bytes in a new array; null when the content is absent or is not what its hash says. */
  get(hash: Buffer): Uint8Array<ArrayBuffer> | null;
  /** Removes the chunk if nothing names it any more, within the transaction that removed the rows that named it. */
  free(hash: Buffer): void;
}

export function chunkTable(db: Database.Database): ChunkTable {
  const insert = db.prepare<[Buffer, Uint8Array]>('INSERT INTO chunks (hash, data) VALUES (?, ?)');
  const replace = db.prepare<[Uint8Array, Buffer]>('UPDATE chunks SET data = ? WHERE hash = ?');
  const select = selectChunk(db);
  const remove = db.prepare<[{ hash: Buffer }]>(
    `DELETE FROM chunks WHERE hash = :hash
       AND NOT EXISTS (SELECT 1 FROM checkpoint_chunks WHERE hash = :hash)
       AND NOT EXISTS (SELECT 1 FROM blob_chunks WHERE hash = :hash)`,
  );
  return {
    put(bytes) {
      // A view whose buffer was transferred elsewhere is empty: storing it would lose data silently.
      assert(bytes.length >= 1, 'a chunk holds at least 1 byte');
      assert(bytes.length <= CHUNK_BYTES_MAX, `a chunk of ${bytes.length} bytes exceeds ${CHUNK_BYTES_MAX}`);
      const hash = sha256(bytes);
      const stored = select.get(hash);
      if (stored === undefined) insert.run(hash, bytes);
      // What is there under the name may have been damaged since: the same content written again heals it.
      else if (verified(stored, hash) === null) replace.run(bytes, hash);
      return hash;
    },
    get: (hash) => verified(select.get(hash), hash),
    free: (hash) => void remove.run({ hash }),
  };
}

/** The statement that fetches one chunk's bytes. */
export function selectChunk(db: Database.Database): Database.Statement<[Buffer], Buffer<ArrayBuffer>> {
  return db.prepare<[Buffer], Buffer<ArrayBuffer>>('SELECT data FROM chunks WHERE hash = ?').pluck();
}

/** `bytes` when they have the digest `hash`, else null. */
export function verified(bytes: Buffer<ArrayBuffer> | undefined, hash: Buffer): Uint8Array<ArrayBuffer> | null {
  if (bytes === undefined || !sha256(bytes).equals(hash)) return null;
  return new Uint8Array(bytes.buffer, bytes.byteOffset, bytes.byteLength);
}
