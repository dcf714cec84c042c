// The schema of `gptd.db`, its migrations by `user_version`, and the settings of every connection. A checkpoint without a
// model and a blob without a hash are unfinished: nobody sees them, and the next open removes them.
// Sizes of pages and of the write-ahead log were measured: 32 KiB pages write 4 MiB chunks 1.6 times as fast as 8 KiB pages
// at the same rate of small commits, and a log above 16 MiB only makes commits wait longer for its checkpoint.

import { mkdirSync, existsSync } from 'node:fs';
import path from 'node:path';
import Database from 'better-sqlite3';
import { assert, GptdError } from '../model/errors.ts';
import type { StoreCalls } from './messages.ts';

/** The implementations of some of the store's calls, by name. */
export type Calls<K extends keyof StoreCalls> = { readonly [P in K]: (input: StoreCalls[P][0]) => StoreCalls[P][1] };

/** Before this release two connections could corrupt a write-ahead log: https://sqlite.org/wal.html#walresetbug. */
export const SQLITE_VERSION_MIN = '3.51.3';
const PAGE_BYTES = 32 << 10;
const WAL_PAGES_BEFORE_CHECKPOINT = 128;
const WAL_BYTES_KEPT_MAX = 64 << 20;

/** Entry i takes a database from version i to i + 1. Entries are never edited once released. */
const MIGRATIONS: readonly string[] = [
  `
  CREATE TABLE models (
    name TEXT PRIMARY KEY,
    config TEXT NOT NULL,
    tokenizer TEXT NOT NULL,
    created_at INTEGER NOT NULL
  ) STRICT;

  CREATE TABLE checkpoints (
    checkpoint_id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- NULL until the commit, and again from the moment that the checkpoint is dropped.
    model TEXT REFERENCES models (name),
    step INTEGER NOT NULL,
    job_id TEXT NOT NULL,
    digest TEXT,
    bytes INTEGER,
    optimizer INTEGER,
    val_loss REAL,
    meta TEXT,
    created_at INTEGER NOT NULL,
    UNIQUE (model, step)
  ) STRICT;

  CREATE TABLE chunks (
    hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
    data BLOB NOT NULL
  ) STRICT;

  CREATE TABLE checkpoint_chunks (
    checkpoint_id INTEGER NOT NULL REFERENCES checkpoints (checkpoint_id),
    tensor TEXT NOT NULL,
    part TEXT NOT NULL CHECK (part IN ('w', 'm', 'v')),
    offset_bytes INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    hash BLOB NOT NULL REFERENCES chunks (hash),
    PRIMARY KEY (checkpoint_id, part, tensor, offset_bytes)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX checkpoint_chunks_by_hash ON checkpoint_chunks (hash);

  CREATE TABLE blobs (
    blob_id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- NULL while pieces arrive.
    hash BLOB UNIQUE CHECK (length(hash) = 32),
    size_bytes INTEGER,
    created_at INTEGER NOT NULL
  ) STRICT;

  CREATE TABLE blob_chunks (
    blob_id INTEGER NOT NULL REFERENCES blobs (blob_id),
    chunk_index INTEGER NOT NULL,
    offset_bytes INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    hash BLOB NOT NULL REFERENCES chunks (hash),
    PRIMARY KEY (blob_id, chunk_index),
    UNIQUE (blob_id, offset_bytes)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX blob_chunks_by_hash ON blob_chunks (hash);

  CREATE TABLE jobs (
    job_number INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL UNIQUE,
    key TEXT UNIQUE,
    kind TEXT NOT NULL,
    spec TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    last_seq INTEGER NOT NULL,
    result TEXT,
    error TEXT
  ) STRICT;
  CREATE INDEX jobs_by_state ON jobs (state);

  CREATE TABLE events (
    job_id TEXT NOT NULL REFERENCES jobs (job_id),
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    type TEXT NOT NULL,
    key TEXT,
    data TEXT NOT NULL,
    PRIMARY KEY (job_id, seq),
    UNIQUE (job_id, key)
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE metrics (
    job_id TEXT NOT NULL REFERENCES jobs (job_id),
    step INTEGER NOT NULL,
    at INTEGER NOT NULL,
    loss REAL,
    lr REAL,
    grad_norm REAL,
    tokens INTEGER,
    tokens_per_second REAL,
    PRIMARY KEY (job_id, step)
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE datasets (
    key TEXT PRIMARY KEY,
    blob BLOB NOT NULL REFERENCES blobs (hash),
    meta TEXT NOT NULL
  ) STRICT;
  `,
];

/** Version of the schema that this program reads and writes. */
export const SCHEMA_VERSION = MIGRATIONS.length;

export const databasePath = (dataDir: string): string => path.join(dataDir, 'gptd.db');

/** Throws `incompatible` when `version` ("3.53.2") is older than SQLITE_VERSION_MIN. */
export function checkSqliteVersion(version: string): void {
  const order = version.localeCompare(SQLITE_VERSION_MIN, 'en', { numeric: true });
  if (order < 0) {
    throw new GptdError('incompatible', `SQLite is ${version}: it must be ${SQLITE_VERSION_MIN} or newer.`);
  }
}

/** Version of the SQLite library behind `db`. */
export function sqliteVersion(db: Database.Database): string {
  return db.prepare<[], string>('SELECT sqlite_version()').pluck().get() ?? 'unknown';
}

/** Settings of every connection, the readers' too: rows and schema of a damaged file are not trusted. */
export function distrustFile(db: Database.Database): void {
  db.pragma('trusted_schema = OFF');
  db.pragma('cell_size_check = ON');
}

/**
 * Opens the writing connection, creating or migrating `gptd.db`. The caller holds the directory's lock. Throws
 * `incompatible` for a newer database, which stays untouched, and for an old SQLite.
 */
export function openDatabase(dataDir: string): Database.Database {
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  const file = databasePath(dataDir);
  if (existsSync(file)) refuseNewer(file);
  const db = new Database(file);
  try {
    checkSqliteVersion(sqliteVersion(db));
    distrustFile(db);
    // The page size takes effect only before the first page is written.
    db.pragma(`page_size = ${PAGE_BYTES}`);
    const mode = db.pragma('journal_mode = WAL', { simple: true });
    assert(mode === 'wal', `the journal mode is ${String(mode)}, it must be wal`);
    // better-sqlite3 is compiled with NORMAL in this mode, which may lose acknowledged commits when the power fails.
    db.pragma('synchronous = FULL');
    db.pragma('foreign_keys = ON');
    db.pragma(`wal_autocheckpoint = ${WAL_PAGES_BEFORE_CHECKPOINT}`);
    db.pragma(`journal_size_limit = ${WAL_BYTES_KEPT_MAX}`);
    migrate(db);
    return db;
  } catch (error) {
    db.close();
    throw error;
  }
}

function schemaVersion(db: Database.Database): number {
  return Number(db.pragma('user_version', { simple: true }));
}

/** Looks through a reading connection, so that a database of a newer gptd keeps every byte. */
function refuseNewer(file: string): void {
  const reader = new Database(file, { readonly: true, fileMustExist: true });
  try {
    const version = schemaVersion(reader);
    if (version > SCHEMA_VERSION) {
      throw new GptdError(
        'incompatible',
        `The database ${file} has schema version ${version}: this gptd reads versions up to ${SCHEMA_VERSION}. Use a newer gptd.`,
      );
    }
  } finally {
    reader.close();
  }
}

function migrate(db: Database.Database): void {
  for (let version = schemaVersion(db); version < SCHEMA_VERSION; version++) {
    db.transaction(() => {
      db.exec(MIGRATIONS[version]);
      db.pragma(`user_version = ${version + 1}`);
    }).immediate();
  }
}
