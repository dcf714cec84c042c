// Threads are terminated from outside in one daemon that lives on: while a training's step, a prompt, a next token or a load is
// computed natively. The work is done again on a new thread, to the bits of a run that nothing disturbed, and so is the work of another
// job on the same thread.

import { existsSync, renameSync, rmSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { JobEvent } from '../../src/daemon/protocol/jobs.ts';
import { ofType, type DataHome, type RawClient } from '../e2e/daemon-fixture.ts';
import { check, type Row } from './row.ts';
import { checkGapless, checkSame, essence, hookEnv, MODEL, trainSpec, uploadText } from './training.ts';

/** The model is so wide that a program runs for a millisecond, and a terminated thread is mostly in the middle of one. */
const WIDE = { ...MODEL, emb_dim: 128, n_heads: 4, context_length: 256 };
const TRAINING = { contextLength: 128, steps: 6 };
const PROMPT = Array.from({ length: 160 }, (_, i) => `${(i * 7) % 10}`).join('');
const TOKENS = 40;
const AFTER_MS_MAX = 4;

/** The kinds of requests of each phase, and the highest piece of each that every run reaches. */
const PHASES = {
  step: { trainForward: 40, trainBackward: 40, trainWeightGradients: 40, trainUpdate: 12 },
  prefill: { serveStep: 10 },
  decode: { serveStep: 22, serveFollow: 36 },
  loading: { serveLoad: 6, trainLoad: 1 },
} as const;
const PHASE_NAMES = ['step', 'prefill', 'decode', 'loading'] as const;

export const workerDeathRows: readonly Row[] = [
  {
    name: 'R11',
    title:
      'a worker thread terminated mid-step, mid-prefill, mid-decode or while loading is replaced, its work redone to the bit',
    tries: 100,
    short: 4,
    async run({ tries, random, tally, home: makeHome }) {
      const home = makeHome();
      const orders = path.join(home.dir, 'orders');
      const { pid } = await home.start({ workers: 2, env: hookEnv({ orders }) });
      await uploadText(home);
      const client = await home.connect();
      const reference = await work(client, 'reference');
      let deaths = 0;
      for (let i = 0; i < tries; i++) {
        const phase = PHASE_NAMES[i % PHASE_NAMES.length];
        const kinds = Object.entries(PHASES[phase]);
        const [kind, highest] = kinds[random.integer(0, kinds.length - 1)];
        const lowest = phase === 'decode' ? PHASES.prefill.serveStep + 1 : 1;
        const point = `${kind}:${random.integer(lowest, highest)}`;
        const afterMs = random.integer(0, AFTER_MS_MAX);
        await tally.try(async () => {
          try {
            writeFileSync(`${orders}.new`, JSON.stringify({ point, afterMs, number: i }));
            renameSync(`${orders}.new`, orders);
            const found = await work(client, `m${i}`);
            await client.request('model.delete', { model: `m${i}` });
            check(!existsSync(orders), 'no thread has reached the point');
            check((await restarts(home)) === ++deaths, `${await restarts(home)} threads were replaced, not ${deaths}`);
            checkSame(found.trained, essence(reference.trained));
            for (const which of ['trained', 'beside'] as const) {
              const tokens = found.tokens[which];
              check(isDeepStrictEqual(tokens, reference.tokens[which]), `other tokens: ${JSON.stringify(tokens)}`);
            }
          } catch (error) {
            rmSync(orders, { force: true });
            deaths = await restarts(home);
            throw new Error(`terminated ${afterMs} ms after ${point}: ${String(error)}`, { cause: error });
          }
        });
      }
      client.close();
      check((await home.json<{ pid: number }>(['status'])).pid === pid, 'it is not the same daemon');
      tally.note(`${deaths} threads terminated in one daemon, which ended with ${await home.signal('SIGTERM')}`);
      return tally.outcome();
    },
  },
];

/** Trains a new model and generates with its first checkpoint at the same time, then generates with the trained model. */
async function work(
  client: RawClient,
  model: string,
): Promise<{ trained: JobEvent[]; tokens: { trained: unknown[]; beside: unknown[] } }> {
  const { seed, ...config } = WIDE;
  await client.follow('create', { model, config, seed, init: 'gpt2', tokenizer: 'byte' });
  const generation = { prompt: PROMPT, maxTokens: TOKENS, temperature: 1, seed: 3 };
  const [trained, beside] = await Promise.all([
    client.follow('train', { ...trainSpec(model), ...TRAINING }),
    client.follow('generate', { ...generation, model: `${model}@0` }),
  ]);
  const after = await client.follow('generate', { ...generation, model });
  return { trained, tokens: { trained: tokensOf(after), beside: tokensOf(beside) } };
}

function tokensOf(events: readonly JobEvent[]): unknown[] {
  checkGapless(events, 'a generation');
  check(events.at(-1)?.type === 'succeeded', `a generation ended with ${JSON.stringify(events.at(-1))}`);
  return ofType(events, 'token').map(({ data }) => data);
}

async function restarts(home: DataHome): Promise<number> {
  const { url, token } = home.daemon;
  const response = await fetch(`${url}/metrics`, { headers: { authorization: `Bearer ${token}` } });
  return Number(/gptd_worker_restarts_total\{worker="stage"\} (\d+)/.exec(await response.text())?.[1]);
}
