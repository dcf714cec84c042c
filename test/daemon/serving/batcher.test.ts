// Checks which sequences a step serves. A real stage runs on the calling thread, and the test notes its steps. Running streams
// never wait for more than one chunk of other prompts. Prompts go in by full chunks, in the order in which they came.

import { afterAll, beforeAll, beforeEach, describe, expect, test } from 'vitest';
import { SequenceText } from '../../../src/daemon/serving/sequence-text.ts';
import { Batcher, FOLLOW_TOKENS_MAX, PREFILL_ROWS } from '../../../src/daemon/serving/batcher.ts';
import type { Generation, GenerationRequest } from '../../../src/daemon/serving/sequence.ts';
import type { StageCaller } from '../../../src/daemon/threads/stages.ts';
import { planStages } from '../../../src/daemon/threads/plan.ts';
import { generateSpec } from '../../../src/daemon/protocol/generation.ts';
import type { GptConfig } from '../../../src/model/config.ts';
import type { Sample } from '../../../src/model/sampling.ts';
import { initialTensors } from '../../../src/model/init.ts';
import { createTokenizer } from '../../../src/model/text/create-tokenizer.ts';
import { loadEngine } from '../../../src/workers/engines/choice.ts';
import type { StageRequest } from '../../../src/workers/stage-messages.ts';
import { ServeStage } from '../../../src/workers/serving/stage.ts';

const CONFIG: GptConfig = {
  vocab_size: 97,
  context_length: 512,
  emb_dim: 32,
  n_heads: 2,
  n_layers: 1,
  drop_rate: 0,
  qkv_bias: true,
  tie_weights: true,
};
const [PLAN] = planStages(CONFIG, 1);

let stage: ServeStage;
/** What one sequence had in a step. */
interface Row {
  readonly sequence: string;
  readonly position: number;
  readonly rowCount: number;
  readonly samples: boolean;
  /** Whether the stage went on to this step by itself. */
  readonly follows: boolean;
}
const steps: (readonly Row[])[] = [];
let isWanted = false;
beforeEach(() => {
  steps.length = 0;
  said.length = 0;
  isWanted = false;
});

beforeAll(async () => {
  const tensors = new Map(
    [...initialTensors(CONFIG, { seed: 1, scheme: 'gpt2' })].map(({ name, data }) => [name, data]),
  );
  const setup = { config: CONFIG, stage: PLAN, quantization: null };
  stage = await ServeStage.load(await loadEngine('onnx'), setup, tensors);
});
afterAll(() => stage.close());

/** Holds every request to the stage and every reply. */
const said: object[] = [];

/** Resolves when the stage is free. The stage has no thread around it, and answers one request after the other. */
let turn: Promise<unknown> = Promise.resolve();
const caller: StageCaller = {
  isWanted: () => isWanted,
  call: async (type, input) => {
    const reply = turn.then(() => answer({ type, ...input } as StageRequest));
    turn = reply.catch(() => undefined);
    said.push(input, await reply);
    return (await reply) as never;
  },
};

async function answer(request: StageRequest): Promise<object> {
  switch (request.type) {
    case 'serveStep':
      steps.push(request.shares.map((share) => ({ ...share, samples: share.sample !== null, follows: false })));
      return await stage.step(request);
    case 'serveFollow': {
      const reply = await stage.follow(request);
      const row = { position: Infinity, rowCount: 1, samples: true, follows: true };
      for (const sampled of reply.steps) {
        const going = request.follows.filter((_, i) => sampled[i] !== null);
        if (going.length > 0) steps.push(going.map(({ sequence }) => ({ sequence, ...row })));
      }
      return reply;
    }
    case 'serveEnd':
      stage.end(request);
      return {};
    default:
      throw new Error(`a batch does not ask for ${request.type}`);
  }
}

const newBatcher = (lease: string, thread = caller): Batcher =>
  new Batcher({ lease, config: CONFIG, stages: [{ thread, plan: PLAN }] }, { sequencesMax: 16, cachedTokensMax: 1e6 });

/** Returns a request whose tokens nobody reads and whose text has no stop string. */
function request(spec: object, { sequence, signal }: { sequence: string; signal: AbortSignal }): GenerationRequest {
  const parsed = generateSpec.parse({ model: 'm', ...spec });
  return {
    sequence,
    spec: parsed,
    prompt: parsed.promptIds!,
    sample: 0,
    continued: [],
    isStopped: false,
    cancelled: signal,
    halted: signal,
    onToken: () => false,
    onWait: () => undefined,
  };
}

/**
 * Generates from a prompt that depends on `name`: prompts of different names share no beginning. `onToken` is called for every
 * token.
 */
function generate(
  batcher: Batcher,
  {
    name,
    promptLength,
    maxTokens,
    onToken,
  }: { name: string; promptLength: number; maxTokens: number; onToken?: () => void },
): Promise<Generation> {
  const salt = name.charCodeAt(0);
  const promptIds = Array.from({ length: promptLength }, (_, i) => (salt + i * (salt + 1)) % CONFIG.vocab_size);
  const never = new AbortController().signal;
  return batcher.generate({
    ...request({ promptIds, maxTokens, temperature: 1 }, { sequence: name, signal: never }),
    onToken: () => {
      onToken?.();
      return false;
    },
  });
}

test('streams are in every step, beside at most one chunk of prompts, and prompts go in in order', async () => {
  const batcher = newBatcher('batch');
  const prompts = [
    { name: 'k', promptLength: 300 },
    { name: 'l', promptLength: 5 },
    { name: 'm', promptLength: 200 },
  ];
  const later: Promise<Generation>[] = [];
  let tokenCount = 0;
  const onToken = (): void => {
    tokenCount += 1;
    // Long prompts come while three streams run.
    if (tokenCount === 15) for (const prompt of prompts) later.push(generate(batcher, { ...prompt, maxTokens: 20 }));
  };
  const streams = ['a', 'b', 'c'].map((name) => generate(batcher, { name, promptLength: 9, maxTokens: 200, onToken }));
  await Promise.all(streams);
  await Promise.all(later);

  // From its first token to its last, a sequence is in every step.
  for (const name of ['a', 'b', 'c', ...prompts.map((prompt) => prompt.name)]) {
    const all = steps.map((shares) => shares.find(({ sequence }) => sequence === name));
    const [first, last] = [all.findIndex((share) => share?.samples), all.findLastIndex((share) => share !== undefined)];
    expect(last - first).toBeGreaterThan(10);
    expect(all.slice(first, last + 1)).not.toContain(undefined);
  }
  const chunks = steps.map((shares) =>
    shares.filter(
      ({ sequence, position }) => position < (prompts.find(({ name }) => name === sequence)?.promptLength ?? 0),
    ),
  );
  // Prompts go in by full chunks, in order of arrival, from the second step after they came at the latest. This bounds the steps
  // until the last prompt's first token.
  const rows = chunks.map((shares) => shares.reduce((sum, { rowCount }) => sum + rowCount, 0)).filter((sum) => sum > 0);
  expect(PREFILL_ROWS.shared).toBe(64);
  expect(rows).toEqual([64, 64, 64, 64, 64, 64, 64, 505 - 7 * 64]);
  const order = chunks.flat().map(({ sequence }) => sequence);
  expect(order).toEqual(order.toSorted());
});

test('a sequence begins with its first step, and nothing is asked of its stage before', async () => {
  const calls: string[] = [];
  const noting: StageCaller = {
    ...caller,
    call: async (type, input) => {
      calls.push(type);
      const reply = await caller.call(type, input);
      calls.push(`${type} answered`);
      return reply;
    },
  };
  const batcher = newBatcher('n', noting);
  await generate(batcher, { name: 'n', promptLength: 5, maxTokens: 1 });
  expect(calls.slice(0, 2)).toEqual(['serveStep', 'serveStep answered']);
});

test('a prompt with an id outside the vocabulary is refused before any step', async () => {
  const batcher = newBatcher('o');
  const never = new AbortController().signal;
  const refused = batcher.generate(request({ promptIds: [3, 97], maxTokens: 1 }, { sequence: 'o', signal: never }));
  await expect(refused).rejects.toThrow("The prompt has token 97: the model's ids go from 0 to 96.");
  expect(steps).toEqual([]);
});

const SPECS = [
  { model: 'm', promptIds: [3, 1, 4, 1, 5, 9, 2, 6], maxTokens: 60 },
  { model: 'm', promptIds: [2, 7, 1, 8, 2, 8], maxTokens: 90, temperature: 1.2, seed: 4, logprobs: 2 },
  { model: 'm', promptIds: [1, 2, 3], maxTokens: 300, temperature: 0.8, stopIds: [11, 12, 13], speculate: false },
  { model: 'm', promptIds: Array.from({ length: 480 }, (_, i) => (i * 7) % 97), maxTokens: 200, temperature: 1 },
  {
    model: 'm',
    promptIds: Array.from({ length: 500 }, (_, i) => (i * 5) % 97),
    maxTokens: 300,
    onContextFull: 'slide',
  },
];

/** Resolves to everything that the sequences of SPECS yield. They run all at once or one after the other. */
async function yieldOf(lease: string, { together }: { together: boolean }): Promise<unknown> {
  const batcher = newBatcher(lease);
  const never = new AbortController().signal;
  const one = async (spec: object, i: number): Promise<unknown> => {
    const tokens: (Sample & { index: number })[] = [];
    const { ids, reason } = await batcher.generate({
      ...request(spec, { sequence: `${lease} ${i}`, signal: never }),
      onToken: (token, { index }) => {
        tokens.push({ ...token, index });
        return false;
      },
    });
    return { ids, reason, tokens };
  };
  if (together) return await Promise.all(SPECS.map(one));
  const all: unknown[] = [];
  for (const [i, spec] of SPECS.entries()) all.push(await one(spec, i));
  return all;
}

const followed = (): number => steps.filter(([row]) => row.follows).length;

test.each([true, false])(
  'a stage that goes on by itself yields the same tokens as single steps, with sequences together: %s',
  async (together) => {
    isWanted = true;
    const expected = await yieldOf(`waiting ${together}`, { together });
    expect(followed()).toBe(0);
    steps.length = 0;
    isWanted = false;
    expect(await yieldOf(`ahead ${together}`, { together })).toEqual(expected);
    // A stage does not go on by itself behind a last step, where a context may slide, or while a prompt goes in.
    expect(followed()).toBeGreaterThan(steps.length / 2);
  },
);

test('a stage goes on by itself until it has enough tokens, is interrupted, runs out of time or ends a sequence', async () => {
  const [sequence, prompt, lastIndex] = ['follows', [1, 2, 3], 9];
  const begins = [{ sequence, prompt, continued: [], stopIds: [], sampling: { temperature: 0, seed: 1 }, sample: 0 }];
  const sample = { index: 0, lastIndex, drafts: [], draftMax: 0 };
  await stage.step({ input: prompt, begins, shares: [{ sequence, position: 0, rowCount: 3, fork: null, sample }] });
  const interrupt = new Int32Array(new SharedArrayBuffer(4));
  const follows = [{ sequence, left: 0, lastIndex, draftMax: 0, guessMax: 0 }];
  const yields = async (more: { tokensMax?: number; spanMs?: number }): Promise<(number | undefined)[]> => {
    const { steps } = await stage.follow({ follows, tokensMax: 16, spanMs: 1e6, interrupt, turn: 0, ...more });
    return steps.map(([sampled]) => sampled?.tokens.length);
  };
  expect(await yields({ tokensMax: 4 })).toEqual([1, 1, 1, 1]);
  interrupt[0] = 1;
  expect(await yields({})).toEqual([1]);
  interrupt[0] = 0;
  expect(await yields({ spanMs: 0 })).toEqual([1]);
  expect(await yields({})).toEqual([1, 1, 1]);
  expect(await yields({})).toEqual([undefined]);
  stage.end({ sequences: [sequence], keepCaches: false });
});

test('a sequence that is cancelled between two steps leaves no trace in the others', async () => {
  const batcher = newBatcher('l');
  const alone = await generate(batcher, { name: 'x', promptLength: 20, maxTokens: 40 });
  const cancel = new AbortController();
  const gone = batcher.generate({
    ...request({ promptIds: [5, 6, 7], maxTokens: 400, temperature: 1 }, { sequence: 'gone', signal: cancel.signal }),
    onToken: (_, { index }) => {
      if (index === 9) cancel.abort(new Error('cancelled'));
      return false;
    },
  });
  const beside = generate(batcher, { name: 'x', promptLength: 20, maxTokens: 40 });
  await expect(gone).rejects.toThrow('cancelled');
  expect((await beside).ids).toEqual(alone.ids);
  // Behind the ten steps, the stage may have gone on by itself, and may have begun to do so once more.
  const stepsMax = 10 + 2 * FOLLOW_TOKENS_MAX;
  expect(steps.flat().filter(({ sequence }) => sequence === 'gone').length).toBeLessThanOrEqual(stepsMax);
});

test.each(['slides', 'is cancelled'])(
  'a prompt takes no beginning from a cache that %s before the beginning is copied',
  async (fate) => {
    const shared = Array.from({ length: 40 }, (_, i) => (i * 31) % 97);
    const filler = Array.from({ length: 400 }, (_, i) => (i * 13 + 5) % 97);
    const run = async (lease: string, { beside }: { beside: boolean }): Promise<readonly number[]> => {
      const batcher = newBatcher(lease);
      const cancel = new AbortController();
      const logprobs: number[] = [];
      const start = (
        name: string,
        spec: object,
        {
          onToken = () => undefined,
          signal = new AbortController().signal,
        }: { onToken?: (token: Sample, index: number) => void; signal?: AbortSignal } = {},
      ): Promise<Generation> =>
        batcher.generate({
          ...request({ speculate: false, ...spec }, { sequence: `${lease} ${name}`, signal }),
          onToken: (token, { index }) => {
            onToken(token, index);
            return false;
          },
        });
      const last = (): Promise<Generation> =>
        start(
          'last',
          { promptIds: [...shared, 1, 2, 3], maxTokens: 20 },
          { onToken: ({ logprob }) => logprobs.push(logprob) },
        );
      if (beside) {
        const source = { promptIds: [...shared, ...filler], maxTokens: 100, onContextFull: 'slide' };
        // Long prompts fill the steps. A prompt behind them shares the source's beginning. Then the source slides or is
        // cancelled.
        const atToken = CONFIG.context_length - shared.length - filler.length - 4;
        const others: Promise<unknown>[] = [];
        const onToken = (_: Sample, index: number): void => {
          if (index === atToken) {
            others.push(
              ...['long', 'longer'].map((name) => start(name, { promptIds: filler.toReversed(), maxTokens: 5 })),
            );
            others.push(last());
          } else if (index === atToken + 3 && fate === 'is cancelled') {
            cancel.abort(new Error('cancelled'));
          }
        };
        await start('source', source, { onToken, signal: cancel.signal }).catch((error: unknown) => {
          expect((error as Error).message).toBe('cancelled');
        });
        await Promise.all(others);
      } else {
        await last();
      }
      return logprobs;
    };
    expect(await run(`beside ${fate}`, { beside: true })).toEqual(await run(`alone ${fate}`, { beside: false }));
  },
);

describe('a stop string', () => {
  const PROMPT = [40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50, 51, 52, 53, 54, 55, 56, 57];
  const SPEC = { promptIds: PROMPT, maxTokens: 200, temperature: 1, seed: 6, logprobs: 2 };

  /** Resolves to the events that a reader of the job sees, to their text, and to the end of the sequence. */
  async function told(
    batcher: Batcher,
    {
      sequence,
      ...spec
    }: { sequence: string; promptIds: readonly number[]; stop?: readonly string[]; speculate?: boolean },
  ): Promise<{ events: object[]; text: string; generation: Generation }> {
    const never = new AbortController().signal;
    const begun = request(spec, { sequence, signal: never });
    const shown = new SequenceText(await createTokenizer({ type: 'byte' }), { spec: begun.spec, continued: [] });
    const events: object[] = [];
    let whole = '';
    const generation = await batcher.generate({
      ...begun,
      onToken: (token, { index, ...end }) => {
        const { text, stopped } = shown.next(token.id, end);
        whole += text;
        events.push({ index, id: token.id, text, logprob: token.logprob, ...shown.listed(token) });
        return stopped;
      },
    });
    return { events, text: whole, generation };
  }

  test.each([true, false])(
    'that comes while the stage goes on by itself ends the sequence as in single steps, with guesses: %s',
    async (speculate) => {
      const whole = await told(newBatcher(`whole ${speculate}`), { sequence: `whole ${speculate}`, ...SPEC });
      // The stop string spans two tokens, so the first half of it is held back.
      const at = whole.text.length - 150;
      const stop = [whole.text.slice(at, at + 2)];
      const first = whole.text.indexOf(stop[0]);
      const run = async (lease: string): ReturnType<typeof told> => {
        steps.length = 0;
        return await told(newBatcher(lease), { sequence: lease, ...SPEC, stop, speculate });
      };
      isWanted = true;
      const single = await run(`one at a time ${speculate}`);
      expect(followed()).toBe(0);
      isWanted = false;
      const burst = await run(`burst ${speculate}`);
      expect(followed()).toBeGreaterThan(first);

      expect(burst.events).toEqual(single.events);
      expect(burst.events).toHaveLength(first + 2);
      expect(burst.text).toBe(whole.text.slice(0, first));
      const ending = ({ generation: { ids, reason, promptTokens } }: typeof burst): object => ({
        ids,
        reason,
        promptTokens,
      });
      expect(ending(burst)).toEqual(ending(single));
      expect(burst.generation).toMatchObject({ reason: 'stop', ids: whole.generation.ids.slice(0, first + 2) });
      const { drafted, accepted } = single.generation;
      expect(burst.generation).toMatchObject({ drafted, accepted });
      // The stage's last request, which goes on behind the stop, ends with the step that is under way.
      await turn;
      expect(steps.length).toBeLessThanOrEqual(first + 2 + FOLLOW_TOKENS_MAX);
    },
  );

  test('leaves a cache that holds only what comes before it, also for prompts that go on otherwise', async () => {
    const whole = await told(newBatcher('cache whole'), { sequence: 'cache whole', ...SPEC });
    const stop = [whole.text.slice(20, 22)];
    const batcher = newBatcher('cache');
    const { generation } = await told(batcher, { sequence: 'cache stopped', ...SPEC, stop });
    const length = PROMPT.length + generation.ids.length;
    // The first prompt goes on as the stage went on behind the stop, the second one goes on otherwise.
    for (const [i, tail] of [whole.generation.ids.slice(generation.ids.length, 60), [7, 8, 9]].entries()) {
      const promptIds = [...PROMPT, ...generation.ids, ...tail];
      const again = { ...SPEC, promptIds, maxTokens: 20 };
      const forked = await told(batcher, { sequence: `cache again ${i}`, ...again });
      const fresh = await told(newBatcher(`cache fresh ${i}`), { sequence: `cache fresh ${i}`, ...again });
      expect(forked.events).toEqual(fresh.events);
      expect(fresh.generation.reusedTokens).toBe(0);
      // The stop string's last token was never computed for this sequence.
      if (i === 0) expect(forked.generation.reusedTokens).toBe(length - 1);
    }
  });

  test('is unknown to a stage, like all text: a stage gets ids and returns ids', async () => {
    await told(newBatcher('words'), { sequence: 'words', ...SPEC, stop: ['never comes'] });
    const names = new Set<string>();
    const texts = new Set<unknown>();
    const look = (value: unknown): void => {
      if (typeof value === 'string') texts.add(value);
      if (typeof value !== 'object' || value === null || ArrayBuffer.isView(value)) return;
      for (const [name, field] of Object.entries(value)) {
        if (!Array.isArray(value)) names.add(name);
        look(field);
      }
    };
    said.forEach(look);
    expect([...texts].sort()).toEqual(['words']);
    expect([...names]).toEqual(expect.arrayContaining(['prompt', 'logprob', 'top', 'tokens', 'follows']));
    for (const name of ['text', 'piece', 'stop', 'stopped', 'tokenizer']) expect(names).not.toContain(name);
  });
});
