// Checks several samples of one prompt: in the events, in the result, on the command line and in OpenAI's API.

import OpenAI from 'openai';
import { afterAll, beforeAll, expect, test } from 'vitest';
import { flagsOf, generateResult, ofType, startedHome, type DataHome } from './daemon-fixture.ts';

const MODEL = { vocab_size: 256, context_length: 128, emb_dim: 32, n_heads: 2, n_layers: 2, drop_rate: 0, seed: 5 };
const DRAWN = ['generate', 'm', '--prompt', 'Hello', '--max-tokens', '20', '--temperature', '1', '--seed', '11'];

let home: DataHome;
let client: OpenAI;

beforeAll(async () => {
  home = await startedHome({ workers: 2 });
  client = new OpenAI({ apiKey: home.daemon.token, baseURL: `${home.daemon.url}/v1`, maxRetries: 0 });
  await home.json(['create', 'm', ...flagsOf(MODEL), '--tokenizer', 'byte', '--init', 'gpt2']);
});

afterAll(() => home.close());

test('each sample has its own tokens, and the first is the sample that is generated alone', async () => {
  const alone = generateResult(await home.events(DRAWN));
  const events = await home.events([...DRAWN, '--n', '3']);
  const { samples = [], ...first } = generateResult(events);
  expect(samples).toHaveLength(3);
  expect(samples[0]).toEqual({ text: alone.text, ids: alone.ids, reason: alone.reason });
  expect(first).toMatchObject({ ...samples[0], usage: { promptTokens: 5, completionTokens: 60 } });
  expect(new Set(samples.map(({ text }) => text)).size).toBe(3);
  const tokens = ofType(events, 'token').map(({ data }) => data);
  for (const [sample, { ids, text }] of samples.entries()) {
    const own = tokens.filter((token) => token.sample === sample);
    expect(own.map(({ index }) => index)).toEqual([...ids.keys()]);
    expect(own.map(({ id }) => id)).toEqual(ids);
    expect(own.map((token) => token.text).join('')).toBe(text);
  }
  expect(ofType(await home.events(DRAWN), 'token').some(({ data }) => 'sample' in data)).toBe(false);
});

test('a job of many samples makes the daemon print no warning', async () => {
  const own = await startedHome();
  try {
    await own.json(['create', 'm', ...flagsOf(MODEL), '--tokenizer', 'byte', '--init', 'gpt2']);
    expect(generateResult(await own.events([...DRAWN, '--n', '12'])).samples).toHaveLength(12);
    const { process } = own.daemon;
    await own.signal('SIGTERM');
    expect((await process.ended).stderr).not.toContain('Warning');
  } finally {
    await own.close();
  }
});

test('the command line prints the first sample as it comes and the others under headings', async () => {
  const { samples = [] } = generateResult(await home.events([...DRAWN, '--n', '3']));
  const { stdout, exitCode } = await home.cli([...DRAWN, '--n', '3']);
  expect(exitCode).toBe(0);
  const [first, second, third] = samples.map(({ text }) => text);
  expect(stdout).toBe(`${first}\n\n--- sample 2 of 3 ---\n${second}\n\n--- sample 3 of 3 ---\n${third}\n`);
});

test("OpenAI's client gets samples as choices, prompt by prompt, streamed or not", async () => {
  const asked = { model: 'm', prompt: ['Hello', 'Good'], max_tokens: 20, temperature: 1, seed: 11, n: 2 };
  const { samples = [] } = generateResult(await home.events([...DRAWN, '--n', '2']));
  const { choices, usage } = await client.completions.create(asked);
  expect(choices.map(({ index }) => index)).toEqual([0, 1, 2, 3]);
  expect(choices.slice(0, 2).map(({ text }) => text)).toEqual(samples.map(({ text }) => text));
  expect(usage).toMatchObject({ prompt_tokens: 9, completion_tokens: 80, total_tokens: 89 });
  const streamed = ['', '', '', ''];
  const reasons: string[] = [];
  for await (const { choices: pieces } of await client.completions.create({ ...asked, stream: true })) {
    for (const { index, text, finish_reason: reason } of pieces as {
      index: number;
      text: string;
      finish_reason: string | null;
    }[]) {
      streamed[index] += text;
      if (reason !== null) reasons.push(reason);
    }
  }
  expect(streamed).toEqual(choices.map(({ text }) => text));
  expect(reasons).toEqual(Array(4).fill('length'));
});
