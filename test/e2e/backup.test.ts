// Checks backups that are made while the daemon works, and daemons that start from them.

import { createHash } from 'node:crypto';
import { copyFileSync, readdirSync, readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import { beforeAll, afterAll, expect, test } from 'vitest';
import type { JobRecord } from '../../src/daemon/protocol/jobs.ts';
import type { ModelRecord } from '../../src/daemon/protocol/models.ts';
import { DataHome, ofType, startedHome, trainResult } from './daemon-fixture.ts';

const TINY = { vocab_size: 256, context_length: 32, emb_dim: 32, n_heads: 2, n_layers: 2, drop_rate: 0.1 };
const TEXT = 'There is no quality in this world that is not what it is merely by contrast. '.repeat(60);

let home: DataHome;
beforeAll(async () => {
  home = await startedHome({ workers: 2 });
});
afterAll(() => home.close());

test('a backup made while checkpoints are written starts a daemon that has everything and goes on to the same bits', async () => {
  const client = await home.connect();
  await client.follow('create', { model: 'm', config: TINY, tokenizer: 'byte' });
  const { url, token } = home.daemon;
  const digest = createHash('sha256').update(TEXT).digest('hex');
  const headers = { authorization: `Bearer ${token}` };
  const uploaded = await fetch(`${url}/v1/blobs/sha256:${digest}`, { method: 'PUT', headers, body: TEXT });
  expect(uploaded.ok).toBe(true);
  const spec = { model: 'm', data: [digest], steps: 60, checkpointEvery: 1, valSplit: 0, seed: 4 };
  const jobId = await client.submit('train', spec);
  await client.subscribe(jobId);
  await client.untilStep(jobId, 3);

  const file = path.join(home.dir, 'copy.db');
  const backup = await home.json<{ bytes: number; models: number; jobs: number }>(['backup', file]);
  expect(backup).toMatchObject({ file, bytes: statSync(file).size, models: 1, jobs: 2 });
  expect(statSync(file).mode & 0o777).toBe(0o600);
  await client.untilEnd(jobId);
  const whole = client.events.filter((event) => event.jobId === jobId);

  const restored = new DataHome();
  try {
    copyFileSync(file, path.join(restored.dir, 'gptd.db'));
    await restored.start();
    const reader = await restored.connect();
    const { jobs } = await reader.request<{ jobs: JobRecord[] }>('job.list');
    expect(jobs.map(({ kind }) => kind).sort()).toEqual(['create', 'train']);
    await reader.subscribe(jobId);
    await reader.untilEnd(jobId);
    expect(trainResult(reader.events).digest).toBe(trainResult(whole).digest);
    const losses = (events: typeof whole): unknown => ofType(events, 'step').map(({ data }) => [data.step, data.loss]);
    expect(losses(reader.events)).toEqual(losses(whole));
    const { models } = await reader.request<{ models: ModelRecord[] }>('model.list');
    expect(models).toMatchObject([{ name: 'm', step: 60, digest: trainResult(whole).digest }]);
  } finally {
    await restored.close();
  }
});

test('a backup replaces no file, leaves nothing behind, and needs a database', async () => {
  const file = home.write('precious', 'what was there');
  const refused = await home.cli(['backup', file]);
  expect(refused.exitCode).toBe(1);
  expect(refused.stderr).toContain(`${file} exists`);
  expect(readFileSync(file, 'utf8')).toBe('what was there');
  const empty = new DataHome();
  const without = await empty.cli(['backup', path.join(empty.dir, 'copy.db')]);
  expect(without.exitCode).toBe(1);
  expect(without.stderr).toContain('nothing to back up');
  expect(readdirSync(empty.dir)).toEqual([]);
  await empty.close();
});
