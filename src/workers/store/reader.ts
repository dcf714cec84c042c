// Read-only access to checkpoints and blobs for the other threads: stages load their tensors, preparers read uploads. It
// works while the store's thread writes, sees only what is committed, and verifies every chunk against its digest.

import Database from 'better-sqlite3';
import type { ChainStep } from '../../model/chain.ts';
import { assert, GptdError } from '../../model/errors.ts';
import type { Quantization } from '../../model/programs/quantize.ts';
import type { StoredPart, TensorPart } from './messages.ts';
import { hashFromHex, selectChunk, verified } from './chunks.ts';
import { databasePath, distrustFile } from './schema.ts';

/** The largest blob that `readBlob` reads at once; larger ones are read by chunk or by range. */
const BLOB_BYTES_IN_MEMORY_MAX = 2 ** 31;

export interface ChunkReader {
  /**
   * Reads one array of a tensor, `sizeBytes` long, into a new array. Throws `not_found` when the checkpoint was dropped,
   * `corrupt` when a chunk is missing or damaged.
   */
  readTensor(request: {
    readonly checkpointId: number;
    readonly tensor: string;
    readonly part: TensorPart;
    readonly sizeBytes: number;
  }): Float32Array<ArrayBuffer>;
  /** Does the same into an array of the tensor's length. */
  readTensorInto(
    request: { readonly checkpointId: number; readonly tensor: string; readonly part: TensorPart },
    into: Float32Array,
  ): void;
  /** Does the same for a part of the array, `sizeBytes` from `offsetBytes` on. */
  readTensorRange(request: {
    readonly checkpointId: number;
    readonly tensor: string;
    readonly part: TensorPart;
    readonly offsetBytes: number;
    readonly sizeBytes: number;
  }): Float32Array<ArrayBuffer>;
  /**
   * Reads what was made of a checkpoint's weight into a new array; null unless it is there, `sizeBytes` long and undamaged.
   * Throws `not_found` when the checkpoint was dropped.
   */
  readMade(request: {
    readonly checkpointId: number;
    readonly tensor: string;
    readonly part: Quantization;
    readonly sizeBytes: number;
  }): Uint8Array<ArrayBuffer> | null;
  /**
   * The blob's size in bytes. This call and the three below throw `not_found` for an unknown blob, `corrupt` for a damaged one.
   */
  blobSize(hash: string): number;
  /** Throws `limit_exceeded` above BLOB_BYTES_IN_MEMORY_MAX. */
  readBlob(hash: string): Uint8Array<ArrayBuffer>;
  /** Yields the chunks in order, each in a new array that the caller owns. */
  blobChunks(hash: string): Iterable<Uint8Array<ArrayBuffer>>;
  /** Returns bytes [offset, offset + length), which must lie within the blob. Only the chunks that they touch are read. */
  readBlobRange(range: {
    readonly hash: string;
    readonly offset: number;
    readonly length: number;
  }): Uint8Array<ArrayBuffer>;
  /** Returns the job's steps after `after`, in order, and `limit` of them at the most. */
  readSteps(request: { readonly jobId: string; readonly after: number; readonly limit: number }): ChainStep[];
  /** May be called twice. */
  close(): void;
}

/** Where a range of one of a tensor's arrays is. */
interface PartAddress {
  readonly checkpointId: number;
  readonly tensor: string;
  readonly part: StoredPart;
  readonly offsetBytes: number;
}

interface Piece {
  readonly offset_bytes: number;
  readonly size_bytes: number;
  readonly hash: Buffer;
}

/** Opens a reading connection on `gptd.db`, which the store's thread must have created. */
export function openReader(dataDir: string): ChunkReader {
  const db = new Database(databasePath(dataDir), { readonly: true, fileMustExist: true });
  distrustFile(db);
  const isCommitted = db
    .prepare<[number], number>('SELECT 1 FROM checkpoints WHERE checkpoint_id = ? AND model IS NOT NULL')
    .pluck();
  const selectPieces = db.prepare<[number, string, string], Piece>(
    `SELECT offset_bytes, size_bytes, hash FROM checkpoint_chunks
     WHERE checkpoint_id = ? AND part = ? AND tensor = ? ORDER BY offset_bytes`,
  );
  const selectBlob = db.prepare<[Buffer], { blob_id: number; size_bytes: number }>(
    'SELECT blob_id, size_bytes FROM blobs WHERE hash = ?',
  );
  const selectPiecesFrom = db.prepare<[{ id: number; offset: number; end: number }], Piece>(
    `SELECT offset_bytes, size_bytes, hash FROM blob_chunks
     WHERE blob_id = :id AND offset_bytes < :end AND offset_bytes >=
       (SELECT max(offset_bytes) FROM blob_chunks WHERE blob_id = :id AND offset_bytes <= :offset)
     ORDER BY offset_bytes`,
  );
  const selectPiece = db.prepare<[number, number], Piece>(
    'SELECT offset_bytes, size_bytes, hash FROM blob_chunks WHERE blob_id = ? AND chunk_index = ?',
  );
  const select = selectChunk(db);
  const selectSteps = db.prepare<[string, number, number], ChainStep>(
    `SELECT step, loss, grad_norm AS gradNorm FROM metrics
     WHERE job_id = ? AND step > ? AND loss IS NOT NULL ORDER BY step LIMIT ?`,
  );

  /** The piece's bytes; `owner` names what is damaged when they are not what was written. */
  function load(piece: Piece, owner: string): Uint8Array<ArrayBuffer> {
    const bytes = verified(fetch(piece.hash, owner), piece.hash);
    if (bytes?.length !== piece.size_bytes) throw damaged(owner);
    return bytes;
  }

  function fetch(hash: Buffer, owner: string): Buffer<ArrayBuffer> | undefined {
    try {
      return select.get(hash);
    } catch (error) {
      // A broken chain of pages shows before any digest can be computed.
      if (error instanceof Database.SqliteError && error.code.startsWith('SQLITE_CORRUPT')) throw damaged(owner, error);
      throw error;
    }
  }

  /** Copies bytes [offset, offset + target.length) out of contiguous `pieces` of which the first holds `offset`. */
  function gather(
    pieces: readonly Piece[],
    { target, offset, owner }: { target: Uint8Array; offset: number; owner: string },
  ): void {
    let filled = 0;
    for (const piece of pieces) {
      const start = offset + filled - piece.offset_bytes;
      if (start < 0 || start >= piece.size_bytes) throw damaged(owner);
      const bytes = load(piece, owner).subarray(start, start + target.length - filled);
      target.set(bytes, filled);
      filled += bytes.length;
    }
    if (filled !== target.length) throw damaged(owner);
  }

  function requireBlob(hash: string): { readonly blob_id: number; readonly size_bytes: number } {
    const blob = selectBlob.get(hashFromHex(hash));
    if (blob === undefined) throw new GptdError('not_found', `There is no blob ${hash}.`);
    return blob;
  }

  // This is one read transaction, so that a purge in the middle cannot pass for damage.
  const readPartInto = db.transaction(
    ({ checkpointId, tensor, part, offsetBytes }: PartAddress, target: Uint8Array) => {
      if (isCommitted.get(checkpointId) === undefined) {
        throw new GptdError('not_found', `There is no checkpoint ${checkpointId} any more: load the newest one.`);
      }
      const end = offsetBytes + target.length;
      const pieces = selectPieces
        .all(checkpointId, part, tensor)
        .filter((piece) => piece.offset_bytes < end && piece.offset_bytes + piece.size_bytes > offsetBytes);
      gather(pieces, {
        target,
        offset: offsetBytes,
        owner: `tensor ${tensor} (${part}) of checkpoint ${checkpointId}`,
      });
    },
  );
  function readPart({ sizeBytes, ...address }: PartAddress & { readonly sizeBytes: number }): Uint8Array<ArrayBuffer> {
    const target = new Uint8Array(sizeBytes);
    readPartInto(address, target);
    return target;
  }
  const readTensorRange: ChunkReader['readTensorRange'] = (range) => new Float32Array(readPart(range).buffer);

  function readMade(request: Parameters<ChunkReader['readMade']>[0]): Uint8Array<ArrayBuffer> | null {
    try {
      return readPart({ ...request, offsetBytes: 0 });
    } catch (error) {
      if (error instanceof GptdError && error.code === 'corrupt') return null;
      throw error;
    }
  }

  function readBlobRange({
    hash,
    offset,
    length,
  }: Parameters<ChunkReader['readBlobRange']>[0]): Uint8Array<ArrayBuffer> {
    const { blob_id: id, size_bytes: size } = requireBlob(hash);
    assert(
      offset >= 0 && length >= 0 && offset + length <= size,
      `bytes ${offset} to ${offset + length} of a blob of ${size}`,
    );
    const target = new Uint8Array(length);
    const pieces = selectPiecesFrom.all({ id, offset, end: offset + length });
    if (length > 0) gather(pieces, { target, offset, owner: `blob ${hash}` });
    return target;
  }

  return {
    readTensor: (request) => readTensorRange({ ...request, offsetBytes: 0 }),
    readTensorInto: (request, into) => {
      const target = new Uint8Array(into.buffer, into.byteOffset, into.byteLength);
      readPartInto({ ...request, offsetBytes: 0 }, target);
    },
    readTensorRange,
    readMade,
    blobSize: (hash) => requireBlob(hash).size_bytes,
    readBlob: (hash) => {
      const length = requireBlob(hash).size_bytes;
      if (length > BLOB_BYTES_IN_MEMORY_MAX) {
        throw new GptdError(
          'limit_exceeded',
          `The blob has ${length} bytes: at most ${BLOB_BYTES_IN_MEMORY_MAX} fit in memory.`,
        );
      }
      return readBlobRange({ hash, offset: 0, length });
    },
    *blobChunks(hash) {
      const { blob_id: id, size_bytes: size } = requireBlob(hash);
      // Rows are read one at a time: a statement left open would keep the write-ahead log from being reset.
      for (let index = 0, offset = 0; offset < size; index++) {
        const piece = selectPiece.get(id, index);
        if (piece?.offset_bytes !== offset) throw damaged(`blob ${hash}`);
        yield load(piece, `blob ${hash}`);
        offset += piece.size_bytes;
      }
    },
    readBlobRange,
    readSteps: ({ jobId, after, limit }) => selectSteps.all(jobId, after, limit),
    close: () => void db.close(),
  };
}

function damaged(owner: string, cause?: unknown): GptdError {
  return new GptdError('corrupt', `The stored data of ${owner} is damaged: its digest does not match.`, { cause });
}
