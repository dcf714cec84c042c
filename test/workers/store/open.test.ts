import { spawn, spawnSync } from 'node:child_process';
import { readFileSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import Database from 'better-sqlite3';
import { expect, it } from 'vitest';
import { examine } from '../../../src/offline/doctor.ts';
import { lockDirectory } from '../../../src/workers/store/lock.ts';
import { SCHEMA_VERSION } from '../../../src/workers/store/migrations.ts';
import {
  checkSqliteVersion,
  openDatabase,
  SQLITE_VERSION_MIN,
  withoutSync,
} from '../../../src/workers/store/schema.ts';
import handle, { openStore } from '../../../src/workers/store/thread.ts';
import { openedStore, temporaryDirectory } from './fixture.ts';

const code = (name: string): Error => expect.objectContaining({ code: name }) as Error;

it('sets the pragmas that durability and distrust need', () => {
  const db = openDatabase(temporaryDirectory());
  const pragma = (name: string): unknown => db.pragma(name, { simple: true });
  expect(pragma('journal_mode')).toBe('wal');
  // The value 2 is FULL: every commit reaches the disk before it is acknowledged.
  expect(pragma('synchronous')).toBe(2);
  expect(pragma('foreign_keys')).toBe(1);
  expect(pragma('trusted_schema')).toBe(0);
  expect(pragma('cell_size_check')).toBe(1);
  expect(pragma('journal_size_limit')).toBe(64 << 20);
  expect(pragma('page_size')).toBe(32 << 10);
  expect(pragma('user_version')).toBe(SCHEMA_VERSION);
  db.close();
});

it('waits for the disk again after a transaction that did not, whether that transaction succeeds or fails', () => {
  const db = openDatabase(temporaryDirectory());
  const level = (): unknown => db.pragma('synchronous', { simple: true });
  // The value 1 is NORMAL: a commit goes to the write-ahead log and does not wait for the disk.
  expect(withoutSync(db, level)).toBe(1);
  expect(level()).toBe(2);
  const broken = db.transaction(() => db.exec('INSERT INTO nowhere VALUES (1)'));
  expect(() => withoutSync(db, broken)).toThrow('nowhere');
  expect(level()).toBe(2);
  db.close();
});

it('refuses a SQLite with the write-ahead log bug', () => {
  expect(() => checkSqliteVersion('3.51.2')).toThrow(code('incompatible'));
  expect(() => checkSqliteVersion('3.9.9')).toThrow(code('incompatible'));
  checkSqliteVersion(SQLITE_VERSION_MIN);
  checkSqliteVersion('3.100.0');
  const { store } = openedStore();
  checkSqliteVersion(store.sqliteVersion);
});

it('leaves a newer database as it is', () => {
  const dataDir = temporaryDirectory();
  openStore(dataDir).close();
  const file = path.join(dataDir, 'gptd.db');
  const db = new Database(file);
  db.pragma(`user_version = ${SCHEMA_VERSION + 1}`);
  db.close();
  const before = readFileSync(file);
  expect(() => openStore(dataDir)).toThrow(code('incompatible'));
  expect(readFileSync(file).equals(before)).toBe(true);
});

it('keeps a file that is no database, and says so', async () => {
  const dataDir = temporaryDirectory();
  const file = path.join(dataDir, 'gptd.db');
  writeFileSync(file, 'something else entirely, and long enough to hold the header of a database file.'.repeat(9));
  const before = readFileSync(file);
  const reply = await handle({ type: 'open', dataDir });
  expect(reply).toMatchObject({ ok: false, error: { code: 'corrupt' } });
  expect(readFileSync(file).equals(before)).toBe(true);
});

/** Overwrites a four-byte field of the database's header: https://sqlite.org/fileformat.html#the_database_header. */
const headerField =
  (at: number, value: number) =>
  (file: string): void => {
    const bytes = readFileSync(file);
    bytes.writeInt32BE(value, at);
    writeFileSync(file, bytes);
  };

it.each([
  ['a format of tables that nobody knows', headerField(44, 99)],
  ['a format of files that this SQLite may only read', headerField(18, 0x03020040)],
  ['a version below 0', headerField(60, -5)],
  ['an older version than its tables', headerField(60, 0)],
  [
    'a column of another name',
    (file: string): void => {
      const db = new Database(file);
      db.exec('ALTER TABLE metrics RENAME COLUMN loss TO lots');
      db.close();
    },
  ],
])('keeps a database that has %s, and says that it is damaged', async (_, damage) => {
  const dataDir = temporaryDirectory();
  openStore(dataDir).close();
  const file = path.join(dataDir, 'gptd.db');
  damage(file);
  const before = readFileSync(file);
  const reply = await handle({ type: 'open', dataDir });
  const message = expect.stringMatching(/is damaged \(.+\)\. It was left as it is: "gptd doctor" says/) as string;
  expect(reply).toMatchObject({ ok: false, error: { code: 'corrupt', message } });
  const findings = await examine({ dataDir, host: '127.0.0.1', port: 0, engine: 'onnx' });
  const advice = expect.stringContaining('put the newest copy of gptd.db in their place') as string;
  expect(findings.find(({ name }) => name === 'database')).toMatchObject({ ok: false, advice });
  expect(readFileSync(file).equals(before)).toBe(true);
});

it('lets only its owner read the directory', () => {
  const dataDir = path.join(temporaryDirectory(), 'new', 'data');
  openedStore(dataDir);
  expect(statSync(dataDir).mode & 0o777).toBe(0o700);
});

it('lets one daemon at a time have the directory', () => {
  const { store, dataDir } = openedStore();
  expect(() => openStore(dataDir)).toThrow(code('conflict'));
  const script = `
    import Database from 'better-sqlite3';
    const db = new Database(process.argv[1], { timeout: 0 });
    try { db.exec('BEGIN EXCLUSIVE'); console.log('taken'); } catch (error) { console.log(error.code); }`;
  const attempt = (): string =>
    spawnSync(process.execPath, ['--input-type=module', '-e', script, path.join(dataDir, 'gptd.lock')], {
      encoding: 'utf8',
    }).stdout.trim();
  expect(attempt()).toBe('SQLITE_BUSY');
  store.close();
  store.close();
  expect(attempt()).toBe('taken');
  const lock = lockDirectory(dataDir);
  lock.release();
  lock.release();
});

it('refuses a directory that another process holds, and opens it when that process is killed', async () => {
  const dataDir = temporaryDirectory();
  openStore(dataDir).close();
  const script = `
    import Database from 'better-sqlite3';
    const db = new Database(process.argv[1]);
    db.exec('BEGIN EXCLUSIVE');
    process.stdout.write('held');
    setInterval(() => db.open, 1000);`;
  const child = spawn(process.execPath, ['--input-type=module', '-e', script, path.join(dataDir, 'gptd.lock')]);
  const exited = new Promise((resolve) => child.once('exit', resolve));
  await new Promise((resolve) => child.stdout.once('data', resolve));
  expect(() => openStore(dataDir)).toThrow(`The data directory ${dataDir} is in use by another daemon`);
  child.kill('SIGKILL');
  await exited;
  openedStore(dataDir);
});
