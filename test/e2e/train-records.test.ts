// Checks what can be asked for after a training: evaluations of any checkpoint on any text, the history of losses, and the proof
// that what is stored is what was computed.

import Database from 'better-sqlite3';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { EvaluateResult } from '../../src/daemon/protocol/evaluation.ts';
import type { HistoryPoint, VerifyResult } from '../../src/daemon/protocol/history.ts';
import type { JobEvent } from '../../src/daemon/protocol/jobs.ts';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { flagsOf, ofType, startedHome, trainResult, type DataHome } from './daemon-fixture.ts';

const T = 32;
const MODEL = { vocab_size: 256, context_length: T, emb_dim: 32, n_heads: 2, n_layers: 3, drop_rate: 0.1, seed: 5 };
const TEXT = Array.from({ length: 300 }, (_, i) => `Verse ${i} of ${(i * 37) % 89}.`).join('\n');
const OTHER = 'Something else, née elsewhere. '.repeat(20);

let shared: DataHome;
let events: JobEvent[];

beforeAll(async () => {
  shared = await startedHome({ workers: 2 });
  shared.write('text.txt', TEXT);
  shared.write('other.txt', OTHER);
  await shared.json(['create', 'm', ...flagsOf(MODEL), '--tokenizer', 'byte', '--init', 'gpt2']);
  const flags = flagsOf({ steps: 20, batch_size: 4, lr: 2e-3, eval_every: 10, checkpoint_every: 10, keep_last: 5 });
  events = await shared.events(['train', 'm', '--data', `${shared.dir}/text.txt`, ...flags]);
});
afterAll(() => shared.close());

const evaluate = (home: DataHome, ...args: string[]): Promise<EvaluateResult> =>
  home.json<EvaluateResult>(['evaluate', ...args]);

describe('evaluate', () => {
  test('predicts every byte of a text but the first, and gives the loss in three ways', async () => {
    const result = await evaluate(shared, 'm@20', '--data', `${shared.dir}/other.txt`);
    const bytes = new TextEncoder().encode(OTHER).length;
    expect(result).toMatchObject({ model: 'm', step: 20, tokens: bytes - 1, contextLength: T, stride: T });
    expect(result.windows).toBe(Math.ceil((bytes - 1) / T));
    expect(result.perplexity).toBeCloseTo(Math.exp(result.loss), 10);
    // The model has the byte tokenizer, so a token is a byte.
    expect(result.bitsPerByte).toBeCloseTo(result.loss / Math.LN2, 10);
    expect(result.digest).toBe(trainResult(events).digest);
  });

  test('does not depend on batches or workers, and lower strides give more context', async () => {
    const data = ['--data', `${shared.dir}/text.txt`];
    const whole = await evaluate(shared, 'm', ...data);
    expect(await evaluate(shared, 'm', ...data, '--batch-size', '3')).toEqual(whole);
    const half = await evaluate(shared, 'm', ...data, '--stride', String(T / 2));
    expect(half).toMatchObject({ tokens: whole.tokens, stride: T / 2 });
    expect(half.loss).toBeLessThan(whole.loss);
    const first = await evaluate(shared, 'm', ...data, '--batch-size', '2', '--max-batches', '3');
    expect(first).toMatchObject({ windows: 6, tokens: 6 * T });
    await shared.restart('SIGTERM', { workers: 3 });
    expect(await evaluate(shared, 'm', ...data)).toEqual(whole);
  });

  test('of the validation part agrees with what the training said', async () => {
    const bytes = new TextEncoder().encode(TEXT);
    const validation = bytes.subarray(bytes.length - Math.floor(bytes.length * 0.1));
    shared.write('validation.txt', validation);
    const said = ofType(events, 'eval').at(-1)!.data;
    // The training evaluated every whole window of this part: it takes five batches of four, and there are fewer windows.
    const windows = Math.floor((validation.length - 1) / T);
    expect(windows).toBeLessThanOrEqual(20);
    const result = await evaluate(
      ...([shared, 'm@20', '--data', `${shared.dir}/validation.txt`, '--batch-size', '1'] as const),
      ...['--max-batches', String(windows)],
    );
    expect(result.loss).toBeCloseTo(said.valLoss!, 6);
  });

  test.each([
    [
      'a longer stride than the context',
      ['m', '--stride', '33', '--data', 'other.txt'],
      EXIT.jobFailed,
      /stride is 33/,
    ],
    [
      'a longer context than the model has',
      ['m', '--context-length', '64', '--data', 'other.txt'],
      EXIT.usage,
      /holds 32/,
    ],
    ['an unknown checkpoint', ['m@7', '--data', 'other.txt'], EXIT.jobFailed, /no checkpoint of step 7/],
    ['no data', ['m'], EXIT.usage, /--data/],
  ])('refuses %s', async (_what, args, code, message) => {
    const { exitCode, stderr, stdout } = await shared.cli([
      'evaluate',
      ...args.map((arg) => (arg === 'other.txt' ? `${shared.dir}/${arg}` : arg)),
    ]);
    expect([exitCode, stdout, stderr.trimEnd().split('\n').at(-1)]).toEqual([code, '', expect.stringMatching(message)]);
  });
});

describe('history', () => {
  test('holds every step and evaluation as in the events', async () => {
    const { points } = await shared.json<{ points: HistoryPoint[] }>(['history', 'm']);
    const steps = ofType(events, 'step').map(({ data: { step, loss, gradNorm, lr, tokens } }) => ({
      step,
      loss,
      gradNorm,
      lr,
      tokens,
    }));
    expect(points.filter(({ loss }) => loss !== null)).toMatchObject(steps);
    const evals = ofType(events, 'eval').map(({ data: { step, trainLoss, valLoss } }) => ({
      step,
      trainLoss,
      valLoss,
    }));
    expect(points.filter(({ trainLoss }) => trainLoss !== null)).toMatchObject(evals);
    const { stdout } = await shared.cli(['history', 'm', '--csv']);
    const lines = stdout.trimEnd().split('\n');
    expect(lines[0]).toBe('model,jobId,step,at,loss,lr,gradNorm,tokens,tokensPerSecond,trainLoss,valLoss');
    expect(lines).toHaveLength(1 + points.length);
  });

  test('draws one model, or two side by side', async () => {
    const one = await shared.cli(['history', 'm']);
    expect(one.exitCode).toBe(0);
    expect(one.stdout).toMatch(/^m/);
    expect(one.stdout).toContain('┤');
    expect(one.stdout).toMatch(/\nm +20 +\d\.\d{4} +\d\.\d{4} +\d\.\d{4} +20\n$/);
    await shared.json(['create', 'other', ...flagsOf(MODEL), '--tokenizer', 'byte']);
    const flags = flagsOf({ steps: 5, batch_size: 4, val_split: 0 });
    await shared.events(['train', 'other', '--data', `${shared.dir}/text.txt`, ...flags]);
    const two = await shared.cli(['history', 'm', 'other']);
    expect(two.stdout.split('\n')[0]).toMatch(/^m +other$/);
    expect((await shared.json<{ runs: unknown[] }>(['history', 'm', 'other'])).runs).toHaveLength(2);
    expect((await shared.cli(['history', 'nobody'])).exitCode).toBe(EXIT.jobFailed);
  });
});

describe('verify', () => {
  test('computes the digest and the hash chain of every checkpoint again', async () => {
    for (const reference of ['m', 'm@10', 'm@0']) {
      const result = await shared.json<VerifyResult>(['verify', reference]);
      expect(result).toMatchObject({ ok: true, problem: null, recomputedDigest: result.digest });
      expect(result.recomputedChain).toBe(result.chain);
    }
    const result = await shared.json<VerifyResult>(['verify', 'm']);
    expect(result.chain).toBe(trainResult(events).chain);
    expect(result.digest).toBe(trainResult(events).digest);
    const { stdout } = await shared.cli(['verify', 'm@20']);
    expect(stdout).toContain(`digest  ${result.digest}`);
  });

  test('finds a changed loss and a damaged chunk, and exits 1', async () => {
    await shared.signal('SIGTERM');
    const db = new Database(path.join(shared.dir, 'gptd.db'));
    const [{ hash }] = db
      .prepare<[], { hash: Buffer }>(
        `SELECT hash FROM checkpoint_chunks JOIN checkpoints USING (checkpoint_id)
       WHERE model = 'm' AND step = 10 AND part = 'w' AND tensor = 'wte.weight'`,
      )
      .all();
    db.prepare('UPDATE chunks SET data = zeroblob(length(data)) WHERE hash = ?').run(hash);
    db.prepare(`UPDATE metrics SET loss = loss + 1e-15 WHERE model = 'm' AND step = 15`).run();
    db.close();
    await shared.start({ workers: 1 });
    const chunk = await shared.cli(['verify', 'm@10', '--json']);
    expect(chunk.exitCode).toBe(EXIT.jobFailed);
    expect(JSON.parse(chunk.stdout)).toMatchObject({ ok: false, recomputedDigest: null });
    const loss = await shared.cli(['verify', 'm@20']);
    expect(loss.exitCode).toBe(EXIT.jobFailed);
    expect(loss.stdout).toMatch(/^m@20: The stored steps of job \S+ chain to /);
  });
});
