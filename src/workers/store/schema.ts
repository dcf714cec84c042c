// Opening `gptd.db`: the settings of every connection, and the way from an older schema (`user_version`) to this one, which
// store/migrations.ts spells out. An older database is copied before it is changed, a newer one is left as it is.
// Sizes of pages and of the write-ahead log were measured: 32 KiB pages write 4 MiB chunks 1.6 times as fast as 8 KiB pages
// at the same rate of small commits, and a log above 16 MiB only makes commits wait longer for its checkpoint.

import {
  closeSync,
  existsSync,
  fsyncSync,
  mkdirSync,
  openSync,
  readSync,
  renameSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import path from 'node:path';
import Database from 'better-sqlite3';
import { assert, GptdError } from '../../model/errors.ts';
import type { StoreCalls } from './messages.ts';
import { MIGRATIONS, SCHEMA_VERSION } from './migrations.ts';

/** The implementations of some of the store's calls, by name. */
export type Calls<K extends keyof StoreCalls> = { readonly [P in K]: (input: StoreCalls[P][0]) => StoreCalls[P][1] };

/** Before this release two connections could corrupt a write-ahead log: https://sqlite.org/wal.html#walresetbug. */
export const SQLITE_VERSION_MIN = '3.51.3';
/** This ends every message about a damaged database. */
export const DAMAGED_ADVICE = 'It was left as it is: "gptd doctor" says what to do.';
/** Whether SQLite says that what it reads is no whole database. */
export const isDamage = (error: unknown): error is Database.SqliteError =>
  error instanceof Database.SqliteError && /^SQLITE_(CORRUPT|NOTADB)/.test(error.code);

const WRITE_FORMAT_AT = 18;
const WRITE_FORMAT_MAX = 2;
const PAGE_BYTES = 32 << 10;
const WAL_PAGES_BEFORE_CHECKPOINT = 128;
const WAL_BYTES_KEPT_MAX = 64 << 20;

export const databasePath = (dataDir: string): string => path.join(dataDir, 'gptd.db');

/** Throws `incompatible` when `version` ("3.53.2") is older than SQLITE_VERSION_MIN. */
export function checkSqliteVersion(version: string): void {
  const order = version.localeCompare(SQLITE_VERSION_MIN, 'en', { numeric: true });
  if (order < 0) {
    throw new GptdError('incompatible', `SQLite is ${version}: it must be ${SQLITE_VERSION_MIN} or newer.`);
  }
}

/** Returns the version of the SQLite library behind `db`. */
export function sqliteVersion(db: Database.Database): string {
  return db.prepare<[], string>('SELECT sqlite_version()').pluck().get() ?? 'unknown';
}

/** Applies the settings of every connection, the readers' too: rows and schema of a damaged file are not trusted. */
export function distrustFile(db: Database.Database): void {
  db.pragma('trusted_schema = OFF');
  db.pragma('cell_size_check = ON');
}

/**
 * Opens the writing connection, creating or migrating `gptd.db`. The caller holds the directory's lock. Throws
 * `incompatible` for a newer database and for an old SQLite, `corrupt` for a damaged database; either stays untouched.
 */
export function openDatabase(dataDir: string): Database.Database {
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  const file = databasePath(dataDir);
  if (existsSync(file)) refuseNewer(file);
  const db = new Database(file);
  try {
    checkSqliteVersion(sqliteVersion(db));
    distrustFile(db);
    // These two settings take effect only before the first page is written; later the second one would only write to the file.
    if (db.pragma('page_count', { simple: true }) === 0) {
      db.pragma(`page_size = ${PAGE_BYTES}`);
      db.pragma('auto_vacuum = INCREMENTAL');
    }
    const mode = db.pragma('journal_mode = WAL', { simple: true });
    assert(mode === 'wal', `the journal mode is ${String(mode)}, it must be wal`);
    // better-sqlite3 is compiled with NORMAL in this mode, which may lose acknowledged commits when the power fails.
    db.pragma('synchronous = FULL');
    db.pragma('foreign_keys = ON');
    // Otherwise SQLite would write what it needs to undo a statement to a file outside the data directory.
    db.pragma('temp_store = MEMORY');
    db.pragma(`wal_autocheckpoint = ${WAL_PAGES_BEFORE_CHECKPOINT}`);
    db.pragma(`journal_size_limit = ${WAL_BYTES_KEPT_MAX}`);
    migrate(db, dataDir);
    return db;
  } catch (error) {
    db.close();
    throw error;
  }
}

/**
 * Runs a transaction that does not wait for the disk. After a failure of power it is there as a whole or not at all. It is
 * durable with the next transaction that waits, and nobody may be told of it before that.
 */
export function withoutSync<T>(db: Database.Database, transaction: () => T): T {
  db.pragma('synchronous = NORMAL');
  try {
    return transaction();
  } finally {
    db.pragma('synchronous = FULL');
  }
}

function schemaVersion(db: Database.Database): number {
  return Number(db.pragma('user_version', { simple: true }));
}

/**
 * Checks the structure of every table but that of the chunks, whose digests are checked as they are read, and the schema. Throws
 * `corrupt` before anything is written: the file keeps every byte.
 */
function refuseDamaged(reader: Database.Database, file: string): void {
  const refuse = (what: string): never => {
    throw new GptdError('corrupt', `The database ${file} is damaged (${what}). ${DAMAGED_ADVICE}`);
  };
  const tables = reader
    .prepare<[], string>(
      `SELECT name FROM sqlite_schema WHERE type = 'table' AND name NOT IN ('chunks', 'sqlite_sequence')`,
    )
    .pluck();
  for (const table of tables.all()) {
    const found = reader.pragma(`quick_check('${table}')`, { simple: true });
    if (found !== 'ok') refuse(`${table}: ${String(found)}`);
  }
  const fault = schemaFault(reader);
  if (fault !== null) refuse(fault);
}

/** What is wrong with a database that SQLite takes for whole, as a clause; null when it is what its version's migrations make. */
export function schemaFault(db: Database.Database): string | null {
  const format = writeFormat(db.name);
  if (format > WRITE_FORMAT_MAX) return `the header asks for a newer SQLite, with format ${format}`;
  const version = schemaVersion(db);
  if (version < 0) return `the schema version is ${version}`;
  const found = new Set(columnsOf(db));
  const { wanted, newest } = columnsAt(version);
  const missing = wanted.find((column) => !found.has(column));
  if (missing !== undefined) return `there is no column ${missing}`;
  const later = newest.find((column) => found.has(column) && !wanted.includes(column));
  return later === undefined ? null : `the schema version is ${version}, which has no column ${later}`;
}

/** The table and name of every column, of the database that the first `version` migrations make, and of what all of them make. */
function columnsAt(version: number): { readonly wanted: readonly string[]; readonly newest: readonly string[] } {
  const db = new Database(':memory:');
  try {
    for (const migration of MIGRATIONS.slice(0, version)) db.exec(migration);
    const wanted = columnsOf(db);
    for (const migration of MIGRATIONS.slice(version)) db.exec(migration);
    return { wanted, newest: columnsOf(db) };
  } finally {
    db.close();
  }
}

const columnsOf = (db: Database.Database): readonly string[] =>
  db
    .prepare<[], string>(
      `SELECT t.name || '.' || c.name FROM sqlite_schema t JOIN pragma_table_info(t.name) c WHERE t.type = 'table'`,
    )
    .pluck()
    .all();

/** SQLite only reads a file of a later format than it knows: https://sqlite.org/fileformat.html#file_format_version_numbers. */
function writeFormat(file: string): number {
  const header = Buffer.alloc(WRITE_FORMAT_AT + 1);
  const descriptor = openSync(file, 'r');
  try {
    readSync(descriptor, header, 0, header.length, 0);
  } finally {
    closeSync(descriptor);
  }
  return header[WRITE_FORMAT_AT];
}

/** Reads the version through a connection that only reads, so that a database of a newer gptd keeps every byte. */
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
    refuseDamaged(reader, file);
  } finally {
    reader.close();
  }
}

/** The copy that a migration from `version` leaves beside the database. */
export const migrationBackupPath = (dataDir: string, version: number): string =>
  `${databasePath(dataDir)}.v${version}.bak`;

/**
 * Copies the database as it is and then runs all steps in one transaction: an interruption leaves the older version, and the
 * next start begins again.
 */
function migrate(db: Database.Database, dataDir: string): void {
  const from = schemaVersion(db);
  if (from === SCHEMA_VERSION) return;
  // A new file holds nothing to keep.
  if (from > 0) copyDatabase(db, migrationBackupPath(dataDir, from));
  db.transaction(() => {
    for (const migration of MIGRATIONS.slice(from)) db.exec(migration);
    db.pragma(`user_version = ${SCHEMA_VERSION}`);
  }).immediate();
}

/** Makes a durable copy, which is complete as soon as it has its name. */
function copyDatabase(db: Database.Database, file: string): void {
  const unfinished = `${file}.new`;
  rmSync(unfinished, { force: true });
  writeFileSync(unfinished, '', { mode: 0o600 });
  db.prepare('VACUUM INTO ?').run(unfinished);
  syncPath(unfinished);
  renameSync(unfinished, file);
  syncPath(path.dirname(file));
}

/** Puts a file, or a directory's names, on the disk. */
export function syncPath(file: string): void {
  const handle = openSync(file, 'r');
  try {
    fsyncSync(handle);
  } finally {
    closeSync(handle);
  }
}
