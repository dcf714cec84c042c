// Runs many generations at once on the built daemon. The tokens of a generation depend on nothing but its own spec: not on the
// others in its batch, the number of workers, what is cached, guesses, a training of the same model, or a restart in the middle.

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { JobEvent } from '../../src/daemon/protocol/jobs.ts';
import { flagsOf, generateResult, ofType, startedHome, trainResult, type DataHome } from './daemon-fixture.ts';

const MODEL = { vocab_size: 256, context_length: 64, emb_dim: 64, n_heads: 4, n_layers: 4, drop_rate: 0, seed: 5 };
const PROMPT = 'call me ishmael. some years ago, never mind how ';

const said = (events: readonly JobEvent[]): unknown =>
  ofType(events, 'token').map(({ data }) => [data.sample ?? 0, data.index, data.id, data.text, data.logprob]);

/** Specs that differ in every option whose generations may share a step. */
const SPECS = Array.from({ length: 12 }, (_, i) => ({
  model: 'm',
  prompt: i % 4 === 3 ? `${i} other beginnings` : PROMPT.slice(0, 20 + 2 * i),
  maxTokens: 8 + 3 * i,
  temperature: i % 2,
  seed: i,
  ...(i % 3 === 0 ? { onContextFull: 'slide' } : {}),
  ...(i === 7 ? { speculate: false } : {}),
}));

async function homeWithModel(workers: number): Promise<DataHome> {
  const home = await startedHome({ workers });
  await home.json(['create', 'm', ...flagsOf(MODEL), '--tokenizer', 'byte', '--init', 'gpt2']);
  return home;
}

describe('generations', () => {
  let home: DataHome;
  let alone: unknown[];

  beforeAll(async () => {
    home = await homeWithModel(1);
    const client = await home.connect();
    alone = [];
    for (const spec of SPECS) alone.push(said(await client.follow('generate', spec)));
    client.close();
  });
  afterAll(async () => {
    await home.close();
  });

  const together = async (over: DataHome): Promise<unknown[]> => {
    const client = await over.connect();
    const all = await Promise.all(
      SPECS.map(async (spec) => {
        const jobId = await client.submit('generate', spec);
        await client.subscribe(jobId);
        await client.untilEnd(jobId);
        return jobId;
      }),
    );
    client.close();
    return all.map((jobId) => said(client.events.filter((event) => event.jobId === jobId)));
  };

  test('say the same in one batch, where they find each other in the cache', async () => {
    expect(await together(home)).toEqual(alone);
  });

  test('say the same without guesses', async () => {
    const client = await home.connect();
    for (const [i, spec] of SPECS.entries()) {
      expect(said(await client.follow('generate', { ...spec, speculate: false }))).toEqual(alone[i]);
    }
    client.close();
  });

  test.each([2, 3, 4])('say the same on %i workers', async (workers) => {
    const other = await homeWithModel(workers);
    expect(await together(other)).toEqual(alone);
    await other.close();
  });

  test('say the same when others are cancelled beside them', async () => {
    const client = await home.connect();
    const doomed = await Promise.all(
      [0, 1, 2].map((i) =>
        client.submit('generate', { model: 'm', prompt: PROMPT, maxTokens: 5000, onContextFull: 'slide', seed: i }),
      ),
    );
    const kept = SPECS.map((spec) => client.submit('generate', spec));
    for (const jobId of doomed) await client.request('job.cancel', { jobId });
    for (const [i, submitted] of kept.entries()) {
      const jobId = await submitted;
      await client.subscribe(jobId);
      await client.untilEnd(jobId);
      expect(said(client.events.filter((event) => event.jobId === jobId))).toEqual(alone[i]);
    }
    client.close();
  });

  test('take a repeated prompt from the cache', async () => {
    const spec = { model: 'm', prompt: PROMPT, maxTokens: 3 };
    const client = await home.connect();
    await client.follow('generate', spec);
    const again = generateResult(await client.follow('generate', spec));
    client.close();
    expect(again.usage.reusedTokens).toBe(PROMPT.length - 1);
  });

  test('guess text that repeats itself', async () => {
    const client = await home.connect();
    const events = await client.follow('generate', {
      model: 'm',
      prompt: 'one two ',
      maxTokens: 600,
      onContextFull: 'slide',
    });
    client.close();
    const { speculation, ids } = generateResult(events);
    expect(ids).toHaveLength(600);
    expect(speculation.accepted).toBeGreaterThan(100);
  });

  test('have samples that differ, each of which says what it says alone', async () => {
    const client = await home.connect();
    const spec = { model: 'm', prompt: PROMPT, maxTokens: 12, temperature: 1, seed: 3 };
    const events = await client.follow('generate', { ...spec, n: 3 });
    const { samples = [] } = generateResult(events);
    expect(samples.map(({ ids }) => ids.length)).toEqual([12, 12, 12]);
    expect(new Set(samples.map(({ text }) => text)).size).toBe(3);
    expect(generateResult(await client.follow('generate', spec)).ids).toEqual(samples[0].ids);
    client.close();
  });

  test('go on when their context slides, and end with a reason when it does not', async () => {
    const client = await home.connect();
    const spec = { model: 'm', prompt: PROMPT, maxTokens: 100 };
    expect(generateResult(await client.follow('generate', spec))).toMatchObject({ reason: 'context' });
    const slid = generateResult(await client.follow('generate', { ...spec, onContextFull: 'slide' }));
    expect([slid.reason, slid.ids.length]).toEqual(['length', 100]);
    client.close();
  });
});

test.each([undefined, 'int8', 'int4'])('a stream goes on behind its last token after a kill: %s', async (quantize) => {
  const spec = {
    model: 'm',
    prompt: PROMPT,
    maxTokens: 400,
    temperature: 0.8,
    seed: 4,
    n: 2,
    onContextFull: 'slide',
    ...(quantize === undefined ? {} : { quantize }),
  };
  const home = await homeWithModel(2);
  const before = await home.connect();
  const whole = said(await before.follow('generate', spec)) as [number, number][];
  const jobId = await before.submit('generate', spec);
  await before.subscribe(jobId);
  for (const [tokens, workers] of [
    [100, 3],
    [300, 1],
  ]) {
    const client = await home.connect();
    await client.subscribe(jobId);
    await client.until((event) => event.jobId === jobId && event.type === 'token' && event.data.index >= tokens);
    client.close();
    await home.restart('SIGKILL', { workers });
  }
  const after = await home.connect();
  await after.subscribe(jobId);
  await after.untilEnd(jobId);
  const order = (tokens: [number, number][]): unknown => tokens.sort((a, b) => a[0] - b[0] || a[1] - b[1]);
  expect(order(said(after.events) as [number, number][])).toEqual(order(whole));
  expect(after.events.map(({ seq }) => seq)).toEqual(after.events.map((_, i) => i + 1));
  after.close();
  await home.close();
});

test('serving a model while it trains changes neither', async () => {
  const home = await homeWithModel(2);
  const text = Array.from({ length: 300 }, (_, i) => `Line ${i} says ${(i * i) % 97}.`).join('\n');
  const train = [
    ...['train', 'm', '--data', home.write('data.txt', text)],
    ...flagsOf({ steps: 30, batch_size: 4, micro_batch_size: 2, checkpoint_every: 10, keep_last: 5 }),
  ];
  const other = await homeWithModel(2);
  other.write('data.txt', text);
  const undisturbed = trainResult(await other.events(train.map((arg) => arg.replace(home.dir, other.dir))));
  await other.close();

  const generate = { model: 'm@0', prompt: PROMPT, maxTokens: 200, onContextFull: 'slide' };
  const client = await home.connect();
  const quiet = said(await client.follow('generate', generate));
  const training = home.events(train);
  for (let i = 0; i < 3; i++) expect(said(await client.follow('generate', generate))).toEqual(quiet);
  expect(trainResult(await training).digest).toBe(undisturbed.digest);
  client.close();
  await home.close();
});
