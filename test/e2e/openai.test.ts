// Runs OpenAI's own client against the real daemon: its completions are what a generating job of the same spec gives.

import OpenAI, { APIError, AuthenticationError, BadRequestError, NotFoundError } from 'openai';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { GenerateSpec } from '../../src/daemon/protocol/kinds.ts';
import type { JobRecord } from '../../src/daemon/protocol/jobs.ts';
import { flagsOf, generateResult, ofType, startedHome, type DataHome, type RawClient } from './daemon-fixture.ts';

const MODEL = { vocab_size: 256, context_length: 2048, emb_dim: 32, n_heads: 2, n_layers: 2, drop_rate: 0 };
const TEXT = 'All work and no play makes Jack a dull boy \u{1f634}, für 5 \u20ac. '.repeat(60);
const PROMPT = 'All work and ';
const GREEDY = { model: 'jack', prompt: PROMPT, max_tokens: 40, temperature: 0 } as const;

/** A completion that goes on until its client leaves. */
const LONG = { ...GREEDY, temperature: 2, max_tokens: 2000, stream: true } as const;

let home: DataHome;
let raw: RawClient;
let client: OpenAI;

beforeAll(async () => {
  home = await startedHome({ workers: 2 });
  raw = await home.connect();
  client = clientWith(home.daemon.token);
  await home.json(['create', 'jack', ...flagsOf(MODEL), '--tokenizer', 'byte', '--init', 'gpt2']);
  const data = home.write('jack.txt', TEXT);
  const training = { steps: 150, batch_size: 4, context_length: 128, lr: 4e-3, val_split: 0 };
  await home.events(['train', 'jack', '--data', data, ...flagsOf(training)]);
});

afterAll(async () => {
  raw.close();
  await home.close();
});

const clientWith = (apiKey: string): OpenAI => new OpenAI({ apiKey, baseURL: `${home.daemon.url}/v1`, maxRetries: 0 });

/** Sends a request that the client's types do not allow. */
const createAnyway = (body: object): Promise<OpenAI.Completion> =>
  client.completions.create(body as OpenAI.CompletionCreateParamsNonStreaming);

async function failureOf(request: Promise<unknown>): Promise<APIError> {
  const error = await request.then(
    () => undefined,
    (reason: unknown) => reason,
  );
  if (!(error instanceof APIError)) throw new Error(`the request did not fail as it should: ${String(error)}`);
  return error;
}

async function newestJob(): Promise<JobRecord & { readonly spec: GenerateSpec }> {
  const { jobs } = await raw.request<{ jobs: JobRecord[] }>('job.list', { kind: 'generate', all: true, limit: 1 });
  return jobs[0] as JobRecord & { readonly spec: GenerateSpec };
}

describe('models', () => {
  test('are listed and found by name and checkpoint', async () => {
    const { data } = await client.models.list();
    expect(data).toMatchObject([{ id: 'jack', object: 'model', owned_by: 'gptd' }]);
    expect(await client.models.retrieve('jack')).toEqual(data[0]);
    expect(await client.models.retrieve('jack@0')).toEqual({ ...data[0], id: 'jack@0' });
  });

  test.each(['nobody', 'jack@7', 'a/b', '%', 'x'.repeat(100)])('%s is not found', async (name) => {
    const error = await failureOf(client.models.retrieve(name));
    expect(error).toBeInstanceOf(NotFoundError);
    expect(error).toMatchObject({ type: 'invalid_request_error', code: 'not_found' });
  });
});

describe('a completion', () => {
  test('is what the job of the same spec generates', async () => {
    const result = generateResult(
      await home.events(['generate', 'jack', '--prompt', PROMPT, '--max-tokens', '40', '--temperature', '0']),
    );
    const completion = await client.completions.create(GREEDY);
    expect(completion).toMatchObject({
      object: 'text_completion',
      model: 'jack',
      choices: [{ index: 0, text: result.text, finish_reason: 'length', logprobs: null }],
      usage: { prompt_tokens: PROMPT.length, completion_tokens: 40, total_tokens: PROMPT.length + 40 },
    });
    const { jobId, state, result: stored } = await newestJob();
    expect(completion.id).toBe(`cmpl-${jobId}`);
    expect({ state, stored }).toMatchObject({ state: 'succeeded', stored: { ids: result.ids } });
    expect(result.text).toContain('no play');
  });

  test('has 16 tokens at temperature 1 and a random seed by default', async () => {
    const seeds: number[] = [];
    for (let i = 0; i < 2; i++) {
      await client.completions.create({ model: 'jack', prompt: PROMPT });
      const { spec } = await newestJob();
      expect(spec).toMatchObject({ maxTokens: 16, temperature: 1 });
      seeds.push(spec.seed);
    }
    expect(seeds[0]).not.toBe(seeds[1]);
  });

  test('repeats itself under one seed, streamed or not, and differs under another', async () => {
    const draw = async (seed: number): Promise<string> =>
      (await client.completions.create({ ...GREEDY, temperature: 1.5, seed })).choices[0].text;
    const first = await draw(7);
    expect(await draw(7)).toBe(first);
    expect(await draw(8)).not.toBe(first);
    let streamed = '';
    for await (const { choices } of await client.completions.create({
      ...GREEDY,
      temperature: 1.5,
      seed: 7,
      stream: true,
    })) {
      streamed += choices[0].text;
    }
    expect(streamed).toBe(first);
  });

  test('answers every prompt of a list under its index, ids and texts alike', async () => {
    const ids = [...new TextEncoder().encode(PROMPT)];
    const [alone, other] = await Promise.all([
      client.completions.create(GREEDY),
      client.completions.create({ ...GREEDY, prompt: 'Jack' }),
    ]);
    const texts = [alone.choices[0].text, other.choices[0].text];
    const many = await client.completions.create({ ...GREEDY, prompt: [PROMPT, 'Jack'] });
    expect(many.choices.map(({ index, text }) => [index, text])).toEqual([...texts.entries()]);
    expect(many.usage).toMatchObject({ prompt_tokens: PROMPT.length + 4, completion_tokens: 80 });
    expect((await client.completions.create({ ...GREEDY, prompt: ids })).choices[0].text).toBe(texts[0]);
    const lists = await client.completions.create({ ...GREEDY, prompt: [ids, [...new TextEncoder().encode('Jack')]] });
    expect(lists.choices.map(({ text }) => text)).toEqual(texts);
  });

  test('begins with the prompt when it is to be echoed', async () => {
    const { text } = (await client.completions.create(GREEDY)).choices[0];
    const ids = [...new TextEncoder().encode(PROMPT)];
    for (const prompt of [PROMPT, ids]) {
      const echoed = await client.completions.create({ ...GREEDY, prompt, echo: true });
      expect(echoed.choices[0].text).toBe(PROMPT + text);
    }
    let streamed = '';
    for await (const chunk of await client.completions.create({ ...GREEDY, echo: true, stream: true })) {
      streamed += chunk.choices[0].text;
    }
    expect(streamed).toBe(PROMPT + text);
  });

  test('ends before a stop text, no part of which is ever shown', async () => {
    const { text } = (await client.completions.create(GREEDY)).choices[0];
    const stop = text.slice(7, 12);
    const stopped = await client.completions.create({ ...GREEDY, stop });
    expect(stopped.choices[0]).toMatchObject({ text: text.slice(0, text.indexOf(stop)), finish_reason: 'stop' });
    const pieces: string[] = [];
    const reasons: (string | null)[] = [];
    for await (const { choices } of await client.completions.create({ ...GREEDY, stop: ['#', stop], stream: true })) {
      pieces.push(choices[0].text);
      reasons.push(choices[0].finish_reason);
    }
    expect(pieces.join('')).toBe(stopped.choices[0].text);
    expect(reasons.filter((reason) => reason !== null)).toEqual(['stop']);
    expect(reasons.at(-1)).toBe('stop');
  });

  test('carries the logprobs of the job, the picked token among them', async () => {
    const asked = { ...GREEDY, temperature: 1.5, seed: 3, max_tokens: 30 };
    const completion = await client.completions.create({ ...asked, logprobs: 4 });
    const { jobId } = await newestJob();
    await raw.subscribe(jobId);
    await raw.untilEnd(jobId);
    const tokens = ofType(
      raw.events.filter((event) => event.jobId === jobId),
      'token',
    ).map(({ data }) => data);
    const { text, logprobs } = completion.choices[0];
    expect(logprobs!.token_logprobs).toEqual(tokens.map(({ logprob }) => logprob));
    expect(logprobs!.tokens).toHaveLength(30);
    for (const [i, { piece, top = [], logprob }] of tokens.entries()) {
      const listed = logprobs!.top_logprobs![i];
      expect(listed[logprobs!.tokens![i]]).toBe(logprob);
      expect(top).toHaveLength(4);
      expect(Object.values(listed)).toEqual(expect.arrayContaining(top.map((other) => other.logprob)));
      if (piece !== '\uFFFD') expect(logprobs!.tokens![i]).toBe(piece);
      expect(logprobs!.text_offset![i]).toBe(tokens.slice(0, i).reduce((sum, token) => sum + token.text.length, 0));
    }
    expect(text).toBe(tokens.map((token) => token.text).join(''));
    const bare = await client.completions.create({ ...asked, logprobs: 0 });
    expect(bare.choices[0].logprobs!.token_logprobs).toEqual(logprobs!.token_logprobs);
    expect(Object.keys(bare.choices[0].logprobs!.top_logprobs![0])).toHaveLength(1);
  });

  test('obeys biases and penalties as the job does', async () => {
    const x = 'x'.charCodeAt(0);
    const biased = await client.completions.create({ ...GREEDY, max_tokens: 5, logit_bias: { [x]: 100 } });
    expect(biased.choices[0].text).toBe('xxxxx');
    const penalized = await client.completions.create({
      ...GREEDY,
      frequency_penalty: 2,
      presence_penalty: 2,
    });
    expect(penalized.choices[0].text).not.toBe((await client.completions.create(GREEDY)).choices[0].text);
  });
});

describe('a stream', () => {
  test('is the completion in pieces, with the usage in a chunk of its own at the end', async () => {
    const whole = await client.completions.create({ ...GREEDY, logprobs: 2 });
    const chunks: OpenAI.Completion[] = [];
    const asked = { ...GREEDY, logprobs: 2, stream: true, stream_options: { include_usage: true } } as const;
    for await (const chunk of await client.completions.create(asked)) chunks.push(chunk);
    const last = chunks.pop()!;
    expect(last).toMatchObject({ choices: [], usage: whole.usage });
    expect(chunks.map(({ usage }) => usage)).toEqual(chunks.map(() => null));
    expect(new Set([...chunks, last].map(({ id }) => id)).size).toBe(1);
    const choices = chunks.map((chunk) => chunk.choices[0]);
    expect(choices.map(({ text }) => text).join('')).toBe(whole.choices[0].text);
    expect(choices.flatMap(({ logprobs }) => logprobs?.token_logprobs ?? [])).toEqual(
      whole.choices[0].logprobs!.token_logprobs,
    );
    expect(choices.at(-1)).toMatchObject({ finish_reason: 'length' });
    expect(chunks.length).toBeGreaterThan(40);
  });

  test('has whole characters only, and no part of a stop text of many bytes', async () => {
    const read = async (stop: string[]): Promise<string[]> => {
      const pieces: string[] = [];
      const asked = { ...GREEDY, max_tokens: 90, stop, stream: true } as const;
      for await (const { choices } of await client.completions.create(asked)) pieces.push(choices[0].text);
      return pieces;
    };
    const pieces = await read([]);
    const whole = pieces.join('');
    const euro = whole.indexOf('\u20ac');
    const stops = ['\u{1f634}', 'ü', '\u20ac', whole.slice(euro - 3, euro + 2)];
    for (const stop of stops) expect(whole).toContain(stop);
    expect(pieces.filter((piece) => /\p{Surrogate}|\uFFFD/u.test(piece))).toEqual([]);
    for (const stop of stops) {
      const stopped = await read(['\u{1f635}', stop]);
      expect(stopped.join('')).toBe(whole.slice(0, whole.indexOf(stop)));
    }
  });

  test('that the daemon cannot finish ends with an error, and the daemon exits with success', async () => {
    const other = await startedHome();
    await other.json(['create', 'm', ...flagsOf(MODEL), '--tokenizer', 'byte']);
    const { url, token } = other.daemon;
    const stream = await new OpenAI({ apiKey: token, baseURL: `${url}/v1`, maxRetries: 0 }).completions.create({
      ...LONG,
      model: 'm',
    });
    let exit: Promise<number | null> | undefined;
    const read = async (): Promise<void> => {
      for await (const chunk of stream) if (chunk.choices.length > 0) exit ??= other.signal('SIGTERM');
    };
    expect(await failureOf(read())).toMatchObject({ code: 'shutting_down' });
    expect(await exit).toBe(0);
    await other.close();
  });

  test('that the client leaves cancels its job', async () => {
    const stream = await client.completions.create(LONG);
    for await (const { id } of stream) {
      expect(id).toBe(`cmpl-${(await newestJob()).jobId}`);
      break;
    }
    const { jobId } = await newestJob();
    await raw.subscribe(jobId);
    expect(await raw.untilEnd(jobId)).toMatchObject({ type: 'cancelled' });
  });

  test('whose job another client cancels ends with an error', async () => {
    const stream = await client.completions.create(LONG);
    const read = async (): Promise<void> => {
      for await (const { id } of stream) await raw.request('job.cancel', { jobId: id.slice('cmpl-'.length) });
    };
    expect(await failureOf(read())).toMatchObject({ code: 'cancelled', type: 'server_error' });
  });
});

describe('a request that is refused', () => {
  test.each<[string, object, string | null]>([
    ['a temperature beyond 2', { temperature: 2.1 }, 'temperature'],
    ['a negative temperature', { temperature: -1 }, 'temperature'],
    ['top_p of 0', { top_p: 0 }, 'top_p'],
    ['a penalty beyond 2', { presence_penalty: 3 }, 'presence_penalty'],
    ['no tokens', { max_tokens: 0 }, 'max_tokens'],
    ['half a sample', { n: 0.5 }, 'n'],
    ['too many answers', { n: 33, prompt: ['a', 'b'] }, 'n'],
    ['more logprobs than there may be', { logprobs: 21 }, 'logprobs'],
    ['an empty stop text', { stop: '' }, 'stop'],
    ['a bias beyond 100', { logit_bias: { 5: 101 } }, 'logit_bias'],
    ['a bias for a word', { logit_bias: { five: 1 } }, 'logit_bias'],
    ['best_of', { best_of: 2 }, 'best_of'],
    ['a suffix', { suffix: 'the end' }, 'suffix'],
    ['echo with logprobs', { echo: true, logprobs: 1 }, 'echo'],
    ['stream options without a stream', { stream_options: { include_usage: true } }, 'stream_options'],
    ['no prompt', { prompt: undefined }, 'prompt'],
    ['a prompt of nothing', { prompt: [] }, 'prompt'],
    ['a prompt of words and ids', { prompt: ['a', 1] }, 'prompt'],
    ['a name that is none', { model: '../x' }, 'model'],
    ['a parameter that nobody knows', { colour: 'red' }, 'colour'],
    ['an empty text', { prompt: '' }, null],
    ["an id beyond the model's", { prompt: [256] }, null],
    ["a bias beyond the model's ids", { logit_bias: { 256: 1 } }, null],
  ])('for %s', async (_what, fields, param) => {
    const error = await failureOf(createAnyway({ ...GREEDY, ...fields }));
    expect(error).toBeInstanceOf(BadRequestError);
    expect(error).toMatchObject({ type: 'invalid_request_error', code: 'invalid_spec', param });
  });

  test('is none when null stands for a field that is absent', async () => {
    const names = ['top_p', 'n', 'logprobs', 'echo', 'stop', 'logit_bias', 'seed', 'best_of', 'suffix', 'stream'];
    const nulls = Object.fromEntries(names.map((name) => [name, null]));
    expect((await createAnyway({ ...GREEDY, ...nulls })).choices).toHaveLength(1);
  });

  test('for an unknown model is not found, streamed or not', async () => {
    for (const stream of [false, true]) {
      const error = await failureOf(client.completions.create({ ...GREEDY, model: 'nobody', stream }));
      expect(error).toBeInstanceOf(NotFoundError);
      expect(error.message).toContain('nobody');
    }
  });

  test('for a wrong token is unauthorized', async () => {
    const stranger = clientWith('not-the-token-of-it');
    for (const ask of [() => stranger.completions.create(GREEDY), () => stranger.models.list()]) {
      const error = await failureOf(ask());
      expect(error).toBeInstanceOf(AuthenticationError);
      expect(error).toMatchObject({ type: 'invalid_request_error', code: 'unauthorized' });
    }
  });

  test('for a foreign page is forbidden', async () => {
    const page = client.withOptions({ defaultHeaders: { origin: 'http://evil.example' } });
    expect(await failureOf(page.completions.create(GREEDY))).toMatchObject({ status: 403 });
  });

  test('for a body that is no JSON, or too long, leaves the daemon well', async () => {
    const post = (body: string): Promise<Response> =>
      fetch(`${home.daemon.url}/v1/completions`, {
        method: 'POST',
        headers: { authorization: `Bearer ${home.daemon.token}`, 'content-type': 'application/json' },
        body,
      });
    for (const body of ['', '{', 'null', '[]', '"x"']) expect((await post(body)).status).toBe(400);
    const long = await post(JSON.stringify({ ...GREEDY, prompt: 'x'.repeat(2 << 20) }));
    expect(long.status).toBe(413);
    expect(await long.json()).toMatchObject({ error: { code: 'limit_exceeded', type: 'invalid_request_error' } });
    expect((await client.completions.create(GREEDY)).choices).toHaveLength(1);
  });
});
