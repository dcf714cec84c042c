// The store's thread: the only writing connection to `gptd.db`, behind the calls of store/messages.ts. Requests are handled one
// after the other, each in short transactions, and answered only when what they did is durable.

import Database from 'better-sqlite3';
import { assert, GptdError, type DiskFull } from '../../model/errors.ts';
import { STORE_THREAD, type StoreCalls, type StoreRequest } from './messages.ts';
import { replying, type Reply } from '../reply.ts';
import { blobCalls } from './blobs.ts';
import { checkpointCalls } from './checkpoints.ts';
import { jobCalls } from './jobs.ts';
import { lockDirectory } from './lock.ts';
import { holdTable } from './holds.ts';
import { metricsCalls } from './metrics.ts';
import { datasetCalls, modelCalls } from './models.ts';
import { diskSpace } from './reserve.ts';
import { DAMAGED_ADVICE, isDamage, openDatabase, sqliteVersion, type Calls } from './schema.ts';
import { blobCollector, jobCollector, pageReturner, steadyClock } from './space.ts';

type StoreValue = StoreCalls[keyof StoreCalls][1];

/** An open store. */
export interface Store extends Calls<Exclude<keyof StoreCalls, 'open' | 'close'>> {
  readonly sqliteVersion: string;
  /** The error to throw for a write that failed for want of room. */
  diskFull(cause: unknown): DiskFull;
  /** May be called twice. */
  close(): void;
}

/**
 * Takes the directory's lock, opens and migrates the database, and removes what an interrupted process left unfinished.
 * Throws `conflict` when another daemon has the directory, `incompatible` for a newer database, `corrupt` for a damaged one.
 */
export function openStore(dataDir: string): Store {
  const lock = lockDirectory(dataDir);
  let db: Database.Database | undefined;
  try {
    db = openDatabase(dataDir);
    return storeOf(db, { dataDir, lock });
  } catch (error) {
    db?.close();
    lock.release();
    throw error;
  }
}

function storeOf(
  db: Database.Database,
  { dataDir, lock }: { readonly dataDir: string; readonly lock: ReturnType<typeof lockDirectory> },
): Store {
  // Every statement is prepared before anything is written: a database whose schema does not fit them keeps every byte.
  const checkpoints = checkpointCalls(db);
  const now = steadyClock();
  const blobs = blobCalls(db, now);
  const holds = holdTable(db);
  const disk = diskSpace(db, dataDir);
  const [collectBlobs, collectJobs, returnPages] = [blobCollector(db), jobCollector(db), pageReturner(db)];
  const others = { ...jobCalls(db), ...modelCalls(db, checkpoints.purge), ...datasetCalls(db), ...metricsCalls(db) };
  disk.restore();
  holds.releaseEnded();
  collectBlobs(now());
  checkpoints.purge();
  blobs.purge();
  return {
    ...others,
    ...checkpoints,
    ...blobs,
    beginCheckpoint: (input) => {
      if (input.sizeBytes !== undefined) disk.admit(input.sizeBytes, `a checkpoint of ${input.model}`);
      return checkpoints.beginCheckpoint(input);
    },
    holdCheckpoint: (input) => ({ model: others.getModel({ name: input.model }), checkpoint: checkpoints.hold(input) }),
    putMade: (input) => {
      const sizeBytes = input.chunks.reduce((sum, { bytes }) => sum + bytes.length, 0);
      disk.admit(sizeBytes, 'a part of quantized weights');
      return checkpoints.putMade(input);
    },
    diskSpace: () => {
      disk.restore();
      return { freeBytes: disk.freeBytes() };
    },
    tidy: ({ thorough, keepJobs }) => {
      if (holds.releaseEnded()) checkpoints.purge();
      const areMoreJobs = collectJobs(keepJobs);
      if (thorough && collectBlobs(now())) blobs.purge();
      return { more: returnPages({ all: thorough }) || areMoreJobs };
    },
    sqliteVersion: sqliteVersion(db),
    diskFull: (cause) => disk.full(cause),
    close: () => {
      db.close();
      lock.release();
    },
  };
}

let store: Store | undefined;

function answer(request: StoreRequest): StoreValue {
  if (request.type === 'open') {
    assert(store === undefined, 'the store is open already');
    store = openStore(request.dataDir);
    return { sqliteVersion: store.sqliteVersion };
  }
  if (request.type === 'close') {
    store?.close();
    store = undefined;
    return {};
  }
  assert(store !== undefined, 'the store is not open');
  switch (request.type) {
    case 'submitJob':
      return store.submitJob(request);
    case 'appendEvents':
      return store.appendEvents(request);
    case 'readEvents':
      return store.readEvents(request);
    case 'getJob':
      return store.getJob(request);
    case 'findJob':
      return store.findJob(request);
    case 'listJobs':
      return store.listJobs(request);
    case 'recoverJobs':
      return store.recoverJobs(request);
    case 'beginCheckpoint':
      return store.beginCheckpoint(request);
    case 'putChunks':
      return store.putChunks(request);
    case 'commitCheckpoint':
      return store.commitCheckpoint(request);
    case 'abortCheckpoint':
      return store.abortCheckpoint(request);
    case 'putMade':
      return store.putMade(request);
    case 'getModel':
      return store.getModel(request);
    case 'listModels':
      return store.listModels(request);
    case 'setTokenizer':
      return store.setTokenizer(request);
    case 'deleteModel':
      return store.deleteModel(request);
    case 'modelFiles':
      return store.modelFiles(request);
    case 'getCheckpoint':
      return store.getCheckpoint(request);
    case 'holdCheckpoint':
      return store.holdCheckpoint(request);
    case 'listCheckpoints':
      return store.listCheckpoints(request);
    case 'hasBlob':
      return store.hasBlob(request);
    case 'beginBlob':
      return store.beginBlob(request);
    case 'putBlobChunk':
      return store.putBlobChunk(request);
    case 'commitBlob':
      return store.commitBlob(request);
    case 'abortBlob':
      return store.abortBlob(request);
    case 'readBlobChunk':
      return store.readBlobChunk(request);
    case 'readHistory':
      return store.readHistory(request);
    case 'getDataset':
      return store.getDataset(request);
    case 'putDataset':
      return store.putDataset(request);
    case 'diskSpace':
      return store.diskSpace(request);
    case 'tidy':
      return store.tidy(request);
    default:
      throw new Error(`unknown store call ${JSON.stringify(request satisfies never)}`);
  }
}

/** Faults of the disk and of the file become errors with a code; every other SQLite error is a bug and stays what it is. */
function translated(error: unknown, { type }: StoreRequest): unknown {
  if (!(error instanceof Database.SqliteError)) return error;
  const cause = { cause: error };
  // Our own statements are wrong only where the schema is not ours, which shows when the store opens.
  if (isDamage(error) || (type === 'open' && error.code === 'SQLITE_ERROR')) {
    return new GptdError('corrupt', `The database gptd.db is damaged (${error.message}). ${DAMAGED_ADVICE}`, cause);
  }
  if (error.code === 'SQLITE_FULL') return store?.diskFull(error) ?? error;
  if (/^SQLITE_(IOERR|CANTOPEN|READONLY)/.test(error.code)) {
    return new GptdError(
      'engine_failed',
      `The database gptd.db cannot be written (${error.code}: ${error.message}).`,
      cause,
    );
  }
  return error;
}

const reply = replying((request: StoreRequest): StoreValue => {
  try {
    return answer(request);
  } catch (error) {
    throw translated(error, request);
  }
}, STORE_THREAD);

/** This is the thread's entry: piscina calls the default export. */
export default function handle(request: StoreRequest): Promise<Reply<StoreValue>> {
  return reply(request);
}
