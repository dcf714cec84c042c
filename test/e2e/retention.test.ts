// Checks that a daemon that runs for long does not grow: it returns the space of deleted models and drops the records of ended
// jobs.

import path from 'node:path';
import Database from 'better-sqlite3';
import { expect, onTestFinished, test } from 'vitest';
import type { JobRecord } from '../../src/daemon/protocol/jobs.ts';
import { startedHome, type DataHome, type StartOptions } from './daemon-fixture.ts';

/** A model with 11 MB of weights. */
const MODEL = { vocab_size: 4000, context_length: 64, emb_dim: 256, n_heads: 4, n_layers: 1, drop_rate: 0 };
const MODEL_BYTES = 4 * (2 * 4000 * 256 + 64 * 256 + 12 * 256 * 256);
const PATIENCE = { timeout: 20_000 };

async function running(options: StartOptions = {}): Promise<DataHome> {
  const home = await startedHome(options);
  onTestFinished(() => home.close());
  return home;
}

/** Returns the bytes of the database, with the pages that are still in the write-ahead log. */
function databaseBytes(home: DataHome): number {
  const db = new Database(path.join(home.dir, 'gptd.db'), { readonly: true });
  try {
    return Number(db.pragma('page_count', { simple: true })) * Number(db.pragma('page_size', { simple: true }));
  } finally {
    db.close();
  }
}

test('deleting a model returns its space, and models that come and go do not let the database grow', async () => {
  const home = await running();
  const client = await home.connect();
  const emptyBytes = databaseBytes(home);
  for (let seed = 0; seed < 4; seed++) {
    await client.follow('create', { model: 'm', config: MODEL, seed });
    const fullBytes = databaseBytes(home);
    expect(fullBytes).toBeGreaterThan(emptyBytes + MODEL_BYTES);
    expect(fullBytes).toBeLessThan(emptyBytes + 1.2 * MODEL_BYTES);
    await client.request('model.delete', { model: 'm' });
    await expect.poll(() => databaseBytes(home), PATIENCE).toBeLessThan(emptyBytes + 0.1 * MODEL_BYTES);
  }
  client.close();
});

test('--keep-jobs bounds the ended jobs that are kept, while the daemon runs and when it starts', async () => {
  const home = await running({ flags: ['--keep-jobs', '3'] });
  const config = { ...MODEL, vocab_size: 256, emb_dim: 16 };
  const client = await home.connect();
  await client.follow('create', { model: 'm', config });
  const ended: string[] = [];
  for (let i = 0; i < 8; i++) {
    const events = await client.follow('generate', { model: 'm', promptIds: [i], maxTokens: 2 });
    ended.unshift(events[0].jobId);
  }
  const kept = async (): Promise<string[]> => {
    const { jobs } = await home.json<{ jobs: JobRecord[] }>(['jobs', '--all']);
    return jobs.map(({ kind, jobId }) => (kind === 'create' ? kind : jobId));
  };
  // The job that made an existing model is kept as well.
  await expect.poll(kept, PATIENCE).toEqual([...ended.slice(0, 3), 'create']);
  await expect(client.subscribe(ended[3])).rejects.toMatchObject({ data: { code: 'not_found' } });
  client.close();

  await home.restart('SIGKILL', { flags: ['--keep-jobs', '1'] });
  await expect.poll(kept, PATIENCE).toEqual([ended[0], 'create']);
});
