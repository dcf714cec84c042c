// Checks the options of a generation: the test sets them as a user does and reads the events.

import { afterAll, beforeAll, expect, test } from 'vitest';
import type { TokenData } from '../../src/daemon/protocol/generation.ts';
import { flagsOf, generateResult, ofType, startedHome, type DataHome } from './daemon-fixture.ts';

const MODEL = { vocab_size: 256, context_length: 128, emb_dim: 32, n_heads: 2, n_layers: 2, drop_rate: 0, seed: 5 };
const GENERATE = ['generate', 'm', '--prompt', 'Hello', '--max-tokens', '30'];
const DRAWN = [...GENERATE, '--temperature', '1', '--seed', '11'];

let home: DataHome;

beforeAll(async () => {
  home = await startedHome({ workers: 2 });
  await home.json(['create', 'm', ...flagsOf(MODEL), '--tokenizer', 'byte', '--init', 'gpt2']);
});

afterAll(() => home.close());

async function tokensOf(args: readonly string[]): Promise<readonly TokenData[]> {
  return ofType(await home.events(args), 'token').map(({ data }) => data);
}

test('a stop id is the last id, and neither it nor anything after it is shown', async () => {
  const whole = generateResult(await home.events(DRAWN));
  const at = 12;
  const id = whole.ids[at];
  const first = whole.ids.indexOf(id);
  const stopped = generateResult(await home.events([...DRAWN, '--stop-id', String(id)]));
  expect(stopped).toMatchObject({ reason: 'stop', ids: whole.ids.slice(0, first + 1) });
  expect(stopped.text).toBe(new TextDecoder().decode(Uint8Array.from(whole.ids.slice(0, first))));
});

test('banned ids do not occur, and the other ids are drawn by the same model', async () => {
  const common = (await tokensOf(DRAWN)).slice(0, 3).map(({ id }) => id);
  const tokens = await tokensOf([...DRAWN, '--ban-id', common.join(','), '--max-tokens', '120']);
  expect(tokens).toHaveLength(120);
  for (const { id, logprob } of tokens) {
    expect(common).not.toContain(id);
    expect(logprob).toBeLessThan(0);
  }
});

test('a presence penalty of 2 never makes an id come back more often', async () => {
  const distinct = async (flags: readonly string[]): Promise<number> =>
    new Set(generateResult(await home.events([...GENERATE, ...flags])).ids).size;
  const plain = await distinct([]);
  expect(await distinct(['--presence-penalty', '2', '--frequency-penalty', '2'])).toBeGreaterThan(plain);
});

test('logprobs list the likeliest tokens with their texts, and change nothing else', async () => {
  const plain = await tokensOf(DRAWN);
  const listed = await tokensOf([...DRAWN, '--logprobs', '3']);
  expect(listed.map(({ id, text, logprob }) => ({ id, text, logprob }))).toEqual(
    plain.map(({ id, text, logprob }) => ({ id, text, logprob })),
  );
  expect(plain[0]).not.toHaveProperty('top');
  for (const { id, piece, logprob, top = [] } of listed) {
    expect(piece).toBe(new TextDecoder().decode(Uint8Array.of(id)));
    expect(top.map((other) => other.text)).toEqual(
      top.map((other) => new TextDecoder().decode(Uint8Array.of(other.id))),
    );
    expect(top).toHaveLength(3);
    expect(top.map((other) => other.logprob)).toEqual(top.map((other) => other.logprob).sort((a, b) => b - a));
    expect(top.find((other) => other.id === id)?.logprob ?? logprob).toBe(logprob);
    expect(logprob).toBeLessThanOrEqual(top[0].logprob);
  }
});

test('logprobs are printed as a table behind the text', async () => {
  const { stdout, exitCode } = await home.cli([...GENERATE, '--max-tokens', '2', '--logprobs', '2']);
  expect(exitCode).toBe(0);
  expect(stdout).toMatch(/\n\nINDEX +TOKEN +LOGPROB +LIKELIEST\n *0 +"[^\n]+\n *1 +"[^\n]+\n$/);
});

test('the result says where the time went', async () => {
  const { timings, usage } = generateResult(await home.events(GENERATE));
  expect(usage).toMatchObject({ promptTokens: 5, completionTokens: 30 });
  for (const value of Object.values(timings)) expect(value).toBeGreaterThanOrEqual(0);
  expect(Object.keys(timings)).toEqual(
    expect.arrayContaining(['queueMs', 'loadMs', 'prefillMs', 'firstTokenMs', 'tokensPerSecond']),
  );
  expect(timings.tokensPerSecond).toBeGreaterThan(0);
});
