// Starts a daemon on a data directory of another version: its jobs have kinds or fields that this version does not know, or lack
// fields that this version has.

import path from 'node:path';
import Database from 'better-sqlite3';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { JobRecord } from '../../src/daemon/protocol/jobs.ts';
import { DataHome, type RawClient } from './daemon-fixture.ts';

const home = new DataHome();
let client: RawClient;

const TEXT = 'It is not down in any map; true places never are. '.repeat(20);
const record = (jobId: string): Promise<JobRecord> => client.request('job.get', { jobId });

/** Changes the database of the stopped daemon. */
function inDatabase(change: (db: Database.Database) => void): void {
  const db = new Database(path.join(home.dir, 'gptd.db'));
  change(db);
  db.close();
}

beforeAll(async () => {
  await home.start();
  await home.json([
    'create',
    'm',
    '--vocab-size',
    '256',
    '--context-length',
    '16',
    '--emb-dim',
    '8',
    '--n-layers',
    '1',
    '--n-heads',
    '1',
  ]);
});
afterAll(() => home.close());

describe('jobs that were queued by another version', () => {
  const jobIds = { foreign: '', strange: '', older: '' };

  beforeAll(async () => {
    const data = home.write('text.txt', TEXT);
    const submit = async (steps: number): Promise<string> => {
      const flags = ['--steps', String(steps), '--batch-size', '2', '--checkpoint-every', '0'];
      const { jobId } = await home.json<{ jobId: string }>(['train', 'm', '--data', data, ...flags, '--detach']);
      return jobId;
    };
    // The others wait in the queue as long as the first job trains.
    const busy = await submit(1_000_000);
    for (const name of ['foreign', 'strange', 'older'] as const) jobIds[name] = await submit(2);
    await home.signal('SIGTERM');
    inDatabase((db) => {
      const change = db.prepare(`UPDATE jobs SET kind = ?, spec = ? WHERE job_id = ?`);
      const specOf = (jobId: string): Record<string, unknown> =>
        JSON.parse(
          db.prepare<[string], string>('SELECT spec FROM jobs WHERE job_id = ?').pluck().get(jobId)!,
        ) as Record<string, unknown>;
      change.run('distil', JSON.stringify({ model: 'm', teacher: 'n' }), jobIds.foreign);
      change.run('train', JSON.stringify({ ...specOf(jobIds.strange), curriculum: 'hard' }), jobIds.strange);
      const older = specOf(jobIds.older);
      // An older version writes neither of these fields.
      delete older['keepLast'];
      delete older['shuffle'];
      change.run('train', JSON.stringify({ ...older, noShuffle: true }), jobIds.older);
    });
    await home.start();
    client = await home.connect();
    await client.request('job.cancel', { jobId: busy });
  });

  test('a job of an unknown kind fails by itself, and says which version would know it', async () => {
    expect((await home.cli(['attach', jobIds.foreign])).exitCode).toBe(1);
    expect(await record(jobIds.foreign)).toMatchObject({
      state: 'failed',
      error: { code: 'incompatible', message: expect.stringContaining('of the kind "distil", which gptd') as string },
    });
  });

  test('a job whose spec has a field that this version does not know fails by itself too', async () => {
    expect((await home.cli(['attach', jobIds.strange])).exitCode).toBe(1);
    expect(await record(jobIds.strange)).toMatchObject({
      state: 'failed',
      error: { code: 'incompatible', message: expect.stringContaining('curriculum') as string },
    });
  });

  test('a field that is missing has its default, and the job runs', async () => {
    const { exitCode } = await home.cli(['attach', jobIds.older]);
    expect(exitCode).toBe(0);
    expect(await record(jobIds.older)).toMatchObject({ state: 'succeeded', result: { model: 'm', reason: 'steps' } });
  });

  test('a failure is told once, also after another start', async () => {
    client.close();
    await home.restart('SIGTERM', {});
    client = await home.connect();
    const { error, lastSeq } = await record(jobIds.foreign);
    expect(error).toMatchObject({ code: 'incompatible' });
    const before = lastSeq;
    await home.restart('SIGTERM', {});
    client = await home.connect();
    expect((await record(jobIds.foreign)).lastSeq).toBe(before);
  });
});
