// The daemon opens databases of other versions. A newer one keeps every byte, and an older one is copied and then migrated as a whole.
// strace sends SIGKILL at chosen system calls of the migration, and the next start has everything.

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import Database from 'better-sqlite3';
import { SCHEMA_VERSION } from '../../src/workers/store/migrations.ts';
import { databasePath, migrationBackupPath } from '../../src/workers/store/schema.ts';
import type { DataHome } from '../e2e/daemon-fixture.ts';
import { schemaOf, writeFirstVersion } from '../workers/store/first-version.ts';
import type { Random } from './random.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';
import { TRACED_START_NEEDS } from './strace.ts';

/** The system calls that change files, and those that put the changes on the disk. */
const CALLS = ['pwrite64', 'write', 'fdatasync', 'fsync', 'ftruncate', 'rename', 'unlink'];
const START = ['start', '--port', '0', '--workers', '1'];
const EXIT_FAILED = 1;

interface Point {
  readonly call: string;
  /** The number of the call among those of its name on the thread, from 1 on. */
  readonly number: number;
}

const older = (home: DataHome): void => writeFirstVersion(home.dir, { state: 'paused', chunkCount: 8 });

/** Resolves to every such call that the store's thread makes until its daemon is ready. */
async function pointsOf(home: DataHome): Promise<readonly Point[]> {
  older(home);
  const trace = path.join(home.dir, 'trace');
  const under = ['strace', '-f', '-qq', '--seccomp-bpf', '-e', `trace=${CALLS.join(',')}`, '-o', trace];
  await home.start({ under });
  const lines = readFileSync(trace, 'utf8')
    .split('\n')
    .map((line) => /^(\d+)\s+(\w+)\((.*)/.exec(line))
    .filter((found) => found !== null);
  const thread = lines.find(([, , , text]) => text.includes('gptd.db.v1.bak'))?.[1];
  check(thread !== undefined, 'no thread has made the copy');
  const counts = new Map<string, number>();
  return lines
    .filter(([, id]) => id === thread)
    .map(([, , call]) => {
      counts.set(call, (counts.get(call) ?? 0) + 1);
      return { call, number: counts.get(call)! };
    });
}

async function killed(home: DataHome, { call, number }: Point): Promise<boolean> {
  const inject = ['-e', `trace=${call}`, '-e', `inject=${call}:signal=SIGKILL:when=${number}`];
  // This is without --seccomp-bpf, because strace 6.1 injects no signal with it.
  const under = ['strace', '-f', '-qq', '-o', '/dev/null', ...inject];
  const running = home.run(START, { under });
  const ready = await running.said('is ready at').then(
    () => true,
    () => false,
  );
  if (ready) process.kill((JSON.parse(home.read('daemon.json')) as { pid: number }).pid, 'SIGKILL');
  const { stderr } = await running.ended;
  check(ready || !stderr.includes('"level":"error"'), `the daemon ended by itself: ${stderr}`);
  return !ready;
}

/** Checks that the database has one of the two versions, and that the next daemon has everything that was in the older one. */
async function migratesLater(home: DataHome): Promise<void> {
  const [file, backup] = [databasePath(home.dir), migrationBackupPath(home.dir, 1)];
  const version = schemaOf(file);
  check([1, SCHEMA_VERSION].includes(version), `the database has version ${version}`);
  if (existsSync(backup)) check(schemaOf(backup) === 1, 'the copy has another version');
  else check(version === 1, 'the database was migrated without a copy');
  await home.start();
  const client = await home.connect();
  const { state, lastSeq } = await client.request<{ state: string; lastSeq: number }>('job.get', { jobId: 'old' });
  check(state === 'paused' && lastSeq >= 3, `the old job is ${state} after ${lastSeq} events`);
  await client.subscribe('old');
  await client.until(({ seq }) => seq === 3);
  check(
    client.events
      .slice(0, 3)
      .map(({ type }) => type)
      .join() === 'queued,step,step',
    'events are missing',
  );
  client.close();
  await home.signal('SIGTERM');
  check(schemaOf(file) === SCHEMA_VERSION && schemaOf(backup) === 1, 'the next start has not migrated the database');
}

/** Checks that a file of a version that no gptd knows yet stays as it is, byte for byte, and that no copy is made. */
async function newerIsKept(home: DataHome, random: Random): Promise<void> {
  await home.start();
  await home.signal('SIGTERM');
  const file = databasePath(home.dir);
  const db = new Database(file);
  db.pragma(`user_version = ${SCHEMA_VERSION + random.integer(1, 1000)}`);
  db.close();
  const before = readFileSync(file);
  const { exitCode, stderr } = await home.run(START).ended;
  check(
    exitCode === EXIT_FAILED && stderr.includes('Use a newer gptd'),
    `it ended with ${String(exitCode)}: ${stderr}`,
  );
  check(readFileSync(file).equals(before), 'the newer database was changed');
  check(
    readdirSync(home.dir).every((name) => !name.endsWith('.bak')),
    'the newer database was copied',
  );
}

async function otherVersions({ tries, random, tally, home: makeHome }: Context): Promise<Outcome> {
  await tally.try(() => newerIsKept(makeHome(), random));
  const points = [...(await pointsOf(makeHome()))];
  const total = points.length;
  let killedCount = 0;
  for (let i = 0; i < tries && points.length > 0; i++) {
    const [point] = points.splice(random.integer(0, points.length - 1), 1);
    await tally.try(async () => {
      const home = makeHome();
      older(home);
      try {
        if (await killed(home, point)) killedCount += 1;
        await migratesLater(home);
      } catch (error) {
        throw new Error(`SIGKILL at ${point.call} ${point.number}: ${String(error)}`, { cause: error });
      } finally {
        await home.close();
      }
    });
  }
  check(killedCount > 0, 'no daemon was killed before it was ready');
  tally.note(
    `${killedCount} daemons were killed at a system call of the store's thread before they were ready, of ${total} such calls`,
  );
  return tally.outcome();
}

export const versionRows: readonly Row[] = [
  {
    name: 'R33',
    title: 'a newer database is refused untouched; an older one is copied and migrated whole, whenever SIGKILL comes',
    tries: 170,
    short: 3,
    needs: TRACED_START_NEEDS,
    run: otherVersions,
  },
];
