// Checks weights in fewer bits on the built daemon. `evaluate` runs the programs that `generate` runs, and says how much a
// trained model loses.

import path from 'node:path';
import Database from 'better-sqlite3';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { EvaluateResult } from '../../src/daemon/protocol/evaluation.ts';
import { flagsOf, generateResult, ofType, startedHome, type DataHome } from './daemon-fixture.ts';

const T = 64;
const MODEL = { vocab_size: 256, context_length: T, emb_dim: 64, n_heads: 2, n_layers: 2, drop_rate: 0, seed: 5 };
const TEXT = Array.from({ length: 900 }, (_, i) => `Verse ${i} of ${(i * 37) % 89} says so.`).join('\n');

let home: DataHome;
let whole: EvaluateResult;

beforeAll(async () => {
  home = await startedHome({ workers: 2 });
  home.write('text.txt', TEXT);
  await home.json(['create', 'm', ...flagsOf(MODEL), '--tokenizer', 'byte', '--init', 'gpt2']);
  const flags = flagsOf({ steps: 120, batch_size: 8, lr: 5e-3, warmup_steps: 10, val_split: 0 });
  await home.events(['train', 'm', '--data', `${home.dir}/text.txt`, ...flags]);
  whole = await evaluate('--data', `${home.dir}/text.txt`);
});
afterAll(() => home.close());

const evaluate = (...args: string[]): Promise<EvaluateResult> => home.json<EvaluateResult>(['evaluate', 'm', ...args]);

describe('evaluate --quantize', () => {
  test.each([
    ['int8', 0.005],
    ['int4', 0.05],
  ])('%s loses at most %d of the perplexity, and says what float32 reaches', async (quantize, most) => {
    // A model that has learned nothing would lose nothing. Chance has a perplexity of 256, and this model is far below.
    expect(whole.perplexity).toBeLessThan(4);
    const { quantized, ...float32 } = await evaluate('--data', `${home.dir}/text.txt`, '--quantize', quantize);
    expect(float32).toEqual(whole);
    expect(quantized!.quantize).toBe(quantize);
    expect(quantized!.loss).not.toBe(whole.loss);
    expect(quantized!.ratio).toBeCloseTo(Math.exp(quantized!.loss - whole.loss), 10);
    expect(Math.abs(quantized!.ratio - 1)).toBeLessThan(most);
    expect(quantized!.bitsPerByte).toBeCloseTo(quantized!.loss / Math.LN2, 10);
  });

  test('int4 loses more than int8', async () => {
    const losses = [];
    for (const quantize of ['int8', 'int4']) {
      const { quantized } = await evaluate('--data', `${home.dir}/text.txt`, '--quantize', quantize);
      losses.push(Math.abs(quantized!.loss - whole.loss));
    }
    expect(losses[1]).toBeGreaterThan(losses[0]);
  });

  test('does not depend on batches, on how many windows run at once, or on workers', async () => {
    const data = ['--data', `${home.dir}/text.txt`, '--quantize', 'int4', '--stride', '48', '--max-batches'];
    const { quantized } = await evaluate(...data, '2', '--batch-size', '6');
    expect((await evaluate(...data, '4', '--batch-size', '3')).quantized).toEqual(quantized);
    await home.restart('SIGTERM', { workers: 4 });
    expect((await evaluate(...data, '12', '--batch-size', '1')).quantized).toEqual(quantized);
  });

  test('judges what generate samples from, to the last bit of every logprob', async () => {
    const first = 'V'.charCodeAt(0);
    const flags = flagsOf({ max_tokens: T - 1, temperature: 1, seed: 9, quantize: 'int4' });
    const events = await home.events(['generate', 'm', '--prompt-ids', String(first), ...flags]);
    const file = home.write('said.bin', new Uint8Array(Uint16Array.of(first, ...generateResult(events).ids).buffer));
    const { quantized } = await evaluate('--data', file, '--tokenizer', 'none', '--quantize', 'int4');
    const sum = ofType(events, 'token').reduce((total, { data }) => total - data.logprob, 0);
    expect(quantized!.loss).toBe(sum / (T - 1));
    expect(quantized!.bitsPerByte).toBeNull();
  });

  test('refuses other formats', async () => {
    const { exitCode, stderr } = await home.cli([
      'evaluate',
      'm',
      '--data',
      `${home.dir}/text.txt`,
      '--quantize',
      'int3',
    ]);
    expect([exitCode, stderr]).toEqual([2, expect.stringMatching(/--quantize.*int8/)]);
  });
});

describe('quantized weights', () => {
  /** Runs SQL on the database of a daemon that has stopped. Returns the value of the last query. */
  const query = (sql: string): number => {
    const db = new Database(path.join(home.dir, 'gptd.db'));
    try {
      for (const statement of sql.split(';').slice(0, -1)) db.exec(statement);
      return db.prepare<[], number>(sql.split(';').at(-1)!).pluck().get()!;
    } finally {
      db.close();
    }
  };
  const ROWS = `SELECT count(*) FROM checkpoint_chunks WHERE part = 'int8'`;
  const MATRICES = 4 * MODEL.n_layers + 1;
  const serve = async (): Promise<readonly number[]> => {
    const flags = flagsOf({ max_tokens: 40, quantize: 'int8' });
    return generateResult(await home.events(['generate', 'm', '--prompt', 'Verse', ...flags])).ids;
  };

  test('are served from what the checkpoint keeps, after a restart too, and leave nothing behind', async () => {
    const said = await serve();
    await home.signal('SIGTERM');
    expect(query(ROWS)).toBe(MATRICES);
    // This swaps the stored matrices of two blocks. A daemon that quantized the weights again would not generate what they give.
    const swapped = `UPDATE checkpoint_chunks SET tensor = replace(tensor, 'h.0.', 'x.') WHERE part = 'int8' AND tensor LIKE 'h.0.%';
      UPDATE checkpoint_chunks SET tensor = replace(tensor, 'h.1.', 'h.0.') WHERE part = 'int8' AND tensor LIKE 'h.1.%';
      UPDATE checkpoint_chunks SET tensor = replace(tensor, 'x.', 'h.1.') WHERE part = 'int8' AND tensor LIKE 'x.%';`;
    expect(query(swapped + ROWS)).toBe(MATRICES);
    await home.start({ workers: 1 });
    expect(await serve()).not.toEqual(said);
    await home.signal('SIGTERM');
    expect(query(`DELETE FROM checkpoint_chunks WHERE part = 'int8' AND tensor LIKE 'h.%';${ROWS}`)).toBe(1);
    await home.start({ workers: 3 });
    expect(await serve()).toEqual(said);
    await home.cli(['models', 'rm', 'm']);
    await home.signal('SIGTERM');
    expect(query(ROWS)).toBe(0);
    expect(query('SELECT count(*) FROM checkpoint_chunks')).toBe(0);
    await home.start();
  });
});
