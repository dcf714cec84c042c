// Checks the migration from the first schema to the newest: nothing is lost, a copy of the old database stays beside the new one,
// and a process that is killed on the way leaves a database that the next start can use.

import { spawn } from 'node:child_process';
import { existsSync, mkdirSync, readFileSync, statSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';
import Database from 'better-sqlite3';
import { expect, it } from 'vitest';
import { SCHEMA_VERSION } from '../../../src/workers/store/migrations.ts';
import { databasePath, migrationBackupPath } from '../../../src/workers/store/schema.ts';
import { openStore } from '../../../src/workers/store/thread.ts';
import { schemaOf, writeFirstVersion } from './first-version.ts';
import { countRows, openedStore, temporaryDirectory, writeCheckpoint } from './fixture.ts';

const BUILT_STORE = pathToFileURL(path.resolve(import.meta.dirname, '../../../dist/workers/store/thread.js')).href;

function firstVersion(): string {
  const dataDir = path.join(temporaryDirectory(), 'data');
  writeFirstVersion(dataDir);
  return dataDir;
}

it('keeps jobs, events and curves, and copies the database as it was', () => {
  const dataDir = firstVersion();
  const { store } = openedStore(dataDir);
  expect(store.recoverJobs({}).jobs).toMatchObject([{ jobId: 'old', state: 'queued', priority: 0, lastSeq: 3 }]);
  expect(store.readEvents({ jobId: 'old', after: 0, limit: 9 }).events.map(({ type }) => type)).toEqual([
    'queued',
    'step',
    'step',
  ]);
  expect(countRows(dataDir, `SELECT count(*) FROM metrics WHERE model = 'tiny' AND loss IN (3.5, 3.25)`)).toBe(2);
  expect(countRows(dataDir, 'SELECT count(*) FROM chunks')).toBe(64);
  const backup = migrationBackupPath(dataDir, 1);
  expect(path.basename(backup)).toBe('gptd.db.v1.bak');
  expect(statSync(backup).mode & 0o777).toBe(0o600);
  expect(schemaOf(backup)).toBe(1);
  expect(schemaOf(databasePath(dataDir))).toBe(SCHEMA_VERSION);

  // The copy is a database from which an older program, and this one, can start.
  const restored = path.join(temporaryDirectory(), 'restored');
  mkdirSync(restored);
  writeFileSync(databasePath(restored), readFileSync(backup));
  expect(openedStore(restored).store.getJob({ jobId: 'old' })).toMatchObject({ state: 'queued' });
});

it('numbers the ended jobs in the order in which they ended', () => {
  const dataDir = firstVersion();
  const db = new Database(databasePath(dataDir));
  db.exec(`INSERT INTO jobs (job_id, kind, spec, state, created_at, ended_at, last_seq)
    VALUES ('c', 'params', '{}', 'succeeded', 1, 30, 2), ('a', 'params', '{}', 'failed', 2, 10, 2),
      ('b', 'params', '{}', 'cancelled', 3, 20, 2)`);
  db.close();
  openedStore(dataDir);
  const reader = new Database(databasePath(dataDir), { readonly: true });
  const numbers = reader.prepare('SELECT job_id, end_number FROM jobs ORDER BY job_id').raw().all();
  reader.close();
  expect(numbers).toEqual([
    ['a', 1],
    ['b', 2],
    ['c', 3],
    ['old', null],
  ]);
});

it('drops quantized matrices whose scales stood for fewer weights, and nothing else', () => {
  const { store, dataDir } = openedStore();
  const { checkpointId } = writeCheckpoint(store, { step: 0, create: true });
  const chunks = 'SELECT count(*) FROM chunks';
  const before = countRows(dataDir, chunks);
  const made = { tensor: 'lm_head.weight', offsetBytes: 0 };
  store.putMade({ checkpointId, chunks: [{ ...made, part: 'int8', bytes: Uint8Array.of(1, 2, 3) }] });
  store.putMade({ checkpointId, chunks: [{ ...made, part: 'int4', bytes: Uint8Array.of(4, 5) }] });
  expect(countRows(dataDir, chunks)).toBe(before + 2);
  store.close();
  const db = new Database(databasePath(dataDir));
  db.pragma('user_version = 4');
  db.close();
  openedStore(dataDir);
  expect(countRows(dataDir, `SELECT count(*) FROM checkpoint_chunks WHERE part IN ('int8', 'int4')`)).toBe(0);
  expect(countRows(dataDir, chunks)).toBe(before);
});

it('copies nothing when there is no database or its schema is the newest', () => {
  const dataDir = temporaryDirectory();
  openStore(dataDir).close();
  openStore(dataDir).close();
  expect(existsSync(migrationBackupPath(dataDir, 0))).toBe(false);
  expect(existsSync(migrationBackupPath(dataDir, SCHEMA_VERSION))).toBe(false);
});

it('leaves either version whole when the process is killed at any moment of the migration', async () => {
  const script = `
    import { writeSync } from 'node:fs';
    import { openStore } from '${BUILT_STORE}';
    writeSync(1, 'opening');
    openStore(process.argv[1]);
    writeSync(1, 'opened');
    setInterval(() => 0, 1000);`;
  let killedBefore = 0;
  for (const waitMs of [0, 1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96]) {
    const dataDir = firstVersion();
    const child = spawn(process.execPath, ['--input-type=module', '-e', script, dataDir], {
      stdio: ['ignore', 'pipe', 'inherit'],
    });
    const exited = new Promise((resolve) => child.once('exit', resolve));
    let said = '';
    await new Promise<void>((resolve) =>
      child.stdout.on('data', (data: Buffer) => {
        said += data.toString();
        resolve();
      }),
    );
    await new Promise((resolve) => setTimeout(resolve, waitMs));
    child.kill('SIGKILL');
    await exited;
    if (!said.includes('opened')) killedBefore += 1;
    expect([1, SCHEMA_VERSION]).toContain(schemaOf(databasePath(dataDir)));
    // A copy under its final name is whole, however early the process ended.
    if (existsSync(migrationBackupPath(dataDir, 1))) expect(schemaOf(migrationBackupPath(dataDir, 1))).toBe(1);
    const { store } = openedStore(dataDir);
    expect(store.getJob({ jobId: 'old' })).toMatchObject({ state: 'queued', lastSeq: 3 });
    expect(countRows(dataDir, 'SELECT count(*) FROM metrics')).toBe(2);
    expect(existsSync(migrationBackupPath(dataDir, 1))).toBe(true);
  }
  expect(killedBefore).toBeGreaterThan(0);
});
