// Checks what an operator sees of a running daemon: its metrics, its log, and the order in which it starts jobs.

import { spawn } from 'node:child_process';
import { createHash } from 'node:crypto';
import { appendFileSync, existsSync, openSync, readFileSync, statSync } from 'node:fs';
import path from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { MAIN_FILE } from '../cli/run-cli.ts';
import { DataHome, ofType, startedHome, type StartOptions } from './daemon-fixture.ts';

const TINY = { vocab_size: 256, context_length: 32, emb_dim: 32, n_heads: 2, n_layers: 2, drop_rate: 0 };
const TEXT = 'It is a way I have of driving off the spleen and regulating the circulation. '.repeat(80);

async function running(options: StartOptions = {}): Promise<DataHome> {
  const home = await startedHome(options);
  onTestFinished(() => home.close());
  return home;
}

/** Uploads the text, and resolves to the spec of a training on it. */
async function trainSpec(home: DataHome, more: object): Promise<object> {
  const { url, token } = home.daemon;
  const digest = createHash('sha256').update(TEXT).digest('hex');
  const response = await fetch(`${url}/v1/blobs/sha256:${digest}`, {
    method: 'PUT',
    headers: { authorization: `Bearer ${token}` },
    body: TEXT,
  });
  expect([200, 201]).toContain(response.status);
  return { data: [digest], batchSize: 4, valSplit: 0, steps: 5, ...more };
}

async function scrape({ url, token }: { url: string; token: string }): Promise<Map<string, number>> {
  const response = await fetch(`${url}/metrics`, { headers: { authorization: `Bearer ${token}` } });
  expect(response.status).toBe(200);
  expect(response.headers.get('content-type')).toMatch(/^text\/plain; version=0\.0\.4/);
  const samples = new Map<string, number>();
  for (const line of (await response.text()).split('\n')) {
    if (line === '' || line.startsWith('#')) continue;
    const [, series, value] = /^(\S+(?:\{.*\})?) (\S+)$/.exec(line) ?? [];
    samples.set(series, Number(value));
  }
  return samples;
}

test('metrics count jobs, tokens, steps, checkpoints and memory, and keep names out of their labels', async () => {
  const home = await running();
  const client = await home.connect();
  await client.follow('create', { model: 'secretname', config: TINY });
  await client.follow('train', await trainSpec(home, { model: 'secretname' }));
  await client.follow('generate', { model: 'secretname', promptIds: [1, 2, 3], maxTokens: 7 });
  const samples = await scrape(home.daemon);
  const value = (series: string): number => {
    const found = samples.get(series);
    if (found === undefined) throw new Error(`there is no series ${series}`);
    return found;
  };
  expect(value('gptd_jobs_ended_total{kind="create",state="succeeded"}')).toBe(1);
  expect(value('gptd_jobs_ended_total{kind="train",state="succeeded"}')).toBe(1);
  expect(value('gptd_jobs_ended_total{kind="generate",state="succeeded"}')).toBe(1);
  expect(value('gptd_jobs{kind="train",state="running"}')).toBe(0);
  expect(value('gptd_queue_length')).toBe(0);
  expect(value('gptd_queue_wait_seconds_count{kind="generate"}')).toBe(1);
  expect(value('gptd_trained_tokens_total')).toBe(5 * 4 * 32);
  expect(value('gptd_train_step_seconds_count')).toBe(5);
  expect(value('gptd_train_loss')).toBeGreaterThan(3);
  expect(value('gptd_generated_tokens_total')).toBe(7);
  expect(value('gptd_prompt_tokens_total')).toBe(3);
  expect(value('gptd_time_to_first_token_seconds_count')).toBe(1);
  expect(value('gptd_checkpoint_seconds_count')).toBe(2);
  expect(value('gptd_checkpoint_bytes_total')).toBeGreaterThan(4 * 4 * 256 * 32);
  expect(value('gptd_memory_bytes{part="resident"}')).toBeGreaterThan(1e7);
  expect(value('gptd_memory_bytes{part="served_models"}')).toBeGreaterThan(1e4);
  expect(value('gptd_memory_bytes{part="training"}')).toBe(0);
  expect(value('gptd_worker_restarts_total{worker="stage"}')).toBe(0);
  expect(value('gptd_websockets')).toBe(1);
  expect(value('gptd_database_bytes{file="gptd.db"}')).toBeGreaterThan(1e4);
  expect(value('nodejs_eventloop_lag_p99_seconds')).toBeGreaterThan(0);
  const all = [...samples.keys()].join('\n');
  expect(all).not.toContain('secretname');
  const guide = readFileSync(new URL('../../docs/guide/operations.md', import.meta.url), 'utf8');
  const named = [...guide.matchAll(/\b(?:gptd|nodejs)_[a-z0-9_]+/g)].map(([name]) => name);
  expect(named.length).toBeGreaterThan(15);
  for (const name of named) expect(all).toContain(name);
  expect(samples.size).toBeLessThan(1000);
  client.close();

  expect((await fetch(`${home.daemon.url}/metrics`)).status).toBe(401);
  expect((await fetch(`${home.daemon.url}/healthz`)).status).toBe(200);
});

test('a deleted model frees its part of the memory for served models at once', async () => {
  const home = await running();
  const client = await home.connect();
  const servedBytes = async (): Promise<number | undefined> =>
    (await scrape(home.daemon)).get('gptd_memory_bytes{part="served_models"}');
  for (const model of ['kept', 'deleted']) {
    await client.follow('create', { model, config: TINY });
    await client.follow('generate', { model, promptIds: [1, 2, 3], maxTokens: 2 });
  }
  const both = (await servedBytes())!;
  await client.request('model.delete', { model: 'deleted' });
  expect(await servedBytes()).toBe(both / 2);
  await client.request('model.delete', { model: 'kept' });
  expect(await servedBytes()).toBe(0);
  // The name is free, and a model that is made under it is another model.
  await client.follow('create', { model: 'deleted', config: TINY, seed: 7 });
  const generated = await client.follow('generate', { model: 'deleted', promptIds: [1, 2, 3], maxTokens: 2 });
  expect(generated.at(-1)?.type).toBe('succeeded');
  expect(await servedBytes()).toBe(both / 2);
  client.close();
});

test('the log tells each transition once, in JSON, and no secret', async () => {
  const home = await running({ flags: ['--log-level', 'trace'] });
  const { url, token } = home.daemon;
  await fetch(`${url}/metrics?token=${token}`, { headers: { authorization: 'Bearer wrong-wrong-wrong-wrong' } });
  const client = await home.connect();
  await client.follow('create', { model: 'm', config: TINY });
  const failed = await client.submit('train', await trainSpec(home, { model: 'm', stride: 2 ** 30, steps: 1e6 }));
  await client.request('job.cancel', { jobId: failed });
  await client.follow('generate', { model: 'm', prompt: 'privateprompt', maxTokens: 2 });
  client.close();
  await home.signal('SIGTERM');
  const { stderr, stdout } = await home.daemon.process.ended;
  const lines = stderr
    .trim()
    .split('\n')
    .map((line) => JSON.parse(line) as { level: string; time: string; msg: string; kind?: string });
  const moves = lines.filter(({ msg, kind }) => msg.startsWith('job ') && kind === 'create').map(({ msg }) => msg);
  expect(moves).toEqual(['job queued', 'job running', 'job succeeded']);
  expect(lines.map(({ msg }) => msg)).toEqual(expect.arrayContaining(['ready', 'stopping', 'stopped']));
  expect(lines.filter(({ msg }) => msg.startsWith('refused: Wrong token'))).toHaveLength(1);
  for (const text of [stderr, stdout]) {
    for (const secret of [token, 'wrong-wrong', 'privateprompt']) expect(text).not.toContain(secret);
  }
});

test('--log-level sets what is logged', async () => {
  const home = await running({ flags: ['--log-level', 'warn'] });
  await fetch(`${home.daemon.url}/metrics`);
  await home.signal('SIGTERM');
  const { stderr } = await home.daemon.process.ended;
  expect(stderr.trim().split('\n')).toHaveLength(1);
  expect(JSON.parse(stderr)).toMatchObject({ level: 'warn', status: 401, path: '/metrics' });
});

test('the log file of a detached daemon is bounded and keeps the newest lines', async () => {
  const home = new DataHome();
  onTestFinished(() => home.close());
  const file = path.join(home.dir, 'daemon.log');
  appendFileSync(file, `${'x'.repeat(1023)}\n`.repeat(8 << 10));
  // A detached process would outlive the fixture. This one stays attached, and writes to a log file as a detached one does.
  const child = spawn(process.execPath, [MAIN_FILE, 'start', '--port', '0', '--workers', '1', '--data-dir', home.dir], {
    stdio: ['ignore', 'ignore', openSync(file, 'a')],
  });
  const exited = new Promise<number | null>((resolve) => child.once('exit', resolve));
  while (!existsSync(path.join(home.dir, 'daemon.json'))) await new Promise((resolve) => setTimeout(resolve, 20));
  child.kill('SIGTERM');
  expect(await exited).toBe(0);
  expect(statSync(`${file}.1`).size).toBe(8 << 20);
  expect(statSync(`${file}.1`).mode & 0o077).toBe(statSync(file).mode & 0o077);
  const told = readFileSync(file, 'utf8').trim().split('\n');
  expect(told.map((line) => (JSON.parse(line) as { msg: string }).msg)).toEqual(['ready', 'stopping', 'stopped']);
});

test('the queue goes by priority, then by order of submission, also over a restart', async () => {
  const home = await running();
  const client = await home.connect();
  for (const model of ['a', 'b', 'c', 'd', 'e']) await client.follow('create', { model, config: TINY });
  const submit = async (model: string, priority: number, steps = 1): Promise<string> => {
    const spec = await trainSpec(home, { model, steps });
    return (await client.request<{ jobId: string }>('job.submit', { kind: 'train', spec, priority })).jobId;
  };
  const long = await submit('a', 0, 60);
  const second = await submit('b', 0);
  const last = await submit('c', -1);
  const first = await submit('d', 50);
  const third = await submit('e', 0);
  await client.subscribe(long);
  await client.untilStep(long, 3);
  await home.restart('SIGKILL', {});
  const again = await home.connect();
  const order: string[] = [];
  for (const jobId of [long, second, last, first, third]) {
    await again.subscribe(jobId);
    void again.untilEnd(jobId).then(() => order.push(jobId));
  }
  await again.untilEnd(last);
  expect(order).toEqual([long, first, second, third, last]);
  expect(ofType(again.events, 'failed')).toEqual([]);
  again.close();

  await expect(home.cli(['generate', 'a', '--prompt', 'x', '--priority', '101'])).resolves.toMatchObject({
    exitCode: 2,
    stderr: expect.stringContaining('between -100 and 100') as string,
  });
  const listed = await home.cli(['jobs', '--all']);
  expect(listed.stdout).toMatch(/PRIORITY/);
});
