// Checks a model that generates on the calling thread: tokens and logprobs depend neither on how the rows got into the cache nor
// on the rows beside them.

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { GptConfig } from '../../../src/model/config.ts';
import { initialTensors } from '../../../src/model/init.ts';
import {
  quantize,
  type Quantization,
  type QuantizedMatrix,
  type QuantizedSource,
} from '../../../src/model/programs/quantize.ts';
import type { Sample } from '../../../src/model/sampling.ts';
import { loadEngine } from '../../../src/workers/engines/choice.ts';
import { ServeStage } from '../../../src/workers/serving/stage.ts';
import type { SamplingOptions, SequenceBegin, ServeShare } from '../../../src/workers/serving/messages.ts';
import type { StageRange } from '../../../src/workers/training/messages.ts';

const GREEDY: SamplingOptions = { temperature: 0, seed: 1 };
const PROMPT = Array.from({ length: 70 }, (_, i) => (i * 37 + 11) % 61);
const CONFIG: GptConfig = {
  vocab_size: 61,
  context_length: 256,
  emb_dim: 64,
  n_heads: 4,
  n_layers: 3,
  drop_rate: 0,
  qkv_bias: false,
  tie_weights: false,
};
const ONE: StageRange[] = [{ firstBlock: 0, endBlock: 3, embeds: true, head: true }];

const [onnx, tensorflow] = [await loadEngine('onnx'), await loadEngine('tensorflow-wasm')];

async function loadStages(
  config: GptConfig,
  ranges: readonly StageRange[],
  { quantization = null, engine = onnx }: { quantization?: Quantization | null; engine?: typeof onnx } = {},
): Promise<ServeStage[]> {
  const tensors = new Map(
    [...initialTensors(config, { seed: 5, scheme: 'gpt2' })].map(({ name, data }) => [name, data]),
  );
  return await Promise.all(ranges.map((stage) => ServeStage.load(engine, { config, stage, quantization }, tensors)));
}

/** A sequence as its batch sees it. */
class Stream {
  readonly name = `${Math.random()}`;
  readonly tokens: Sample[] = [];
  readonly ids: number[];
  position = 0;
  /** Holds the beginning of the sequence until its first step. */
  begins: SequenceBegin[];
  readonly #lastIndex: number;

  constructor({
    prompt = PROMPT,
    sampling = GREEDY,
    sample = 0,
    count,
  }: {
    prompt?: readonly number[];
    sampling?: SamplingOptions;
    sample?: number;
    count: number;
  }) {
    this.ids = [...prompt];
    this.#lastIndex = count - 1;
    this.begins = [{ sequence: this.name, prompt, continued: [], stopIds: [], sampling, sample }];
  }

  get done(): boolean {
    return this.tokens.length > this.#lastIndex;
  }

  share(
    count: number,
    { drafts = [], fork = null }: { drafts?: readonly number[]; fork?: ServeShare['fork'] } = {},
  ): ServeShare {
    if (fork !== null) this.position = fork.length;
    const whole = this.position + count === this.ids.length;
    const sample = whole ? { index: this.tokens.length, lastIndex: this.#lastIndex, drafts, draftMax: 4 } : null;
    return { sequence: this.name, position: this.position, rowCount: count + drafts.length, fork, sample };
  }

  rows({ rowCount, sample, position }: ServeShare): number[] {
    const drafts = sample?.drafts ?? [];
    return [...this.ids.slice(position, position + rowCount - drafts.length), ...drafts];
  }
}

/**
 * Runs one step of several streams, and adds the sampled tokens to them. Resolves to each stream's guesses of the next tokens.
 */
async function step(
  stages: readonly ServeStage[],
  steps: readonly { stream: Stream; share: ServeShare }[],
): Promise<(readonly number[])[]> {
  const shares = steps.map(({ share }) => share);
  const begins = steps.flatMap(({ stream }) => stream.begins.splice(0));
  let input: readonly number[] | Float32Array = steps.flatMap(({ stream, share }) => stream.rows(share));
  for (const stage of stages) {
    const { x, sampled } = await stage.step({ input, shares, begins });
    if (sampled === null) {
      input = x!;
      continue;
    }
    return steps.map(({ stream, share }, i) => {
      const drafts = share.sample?.drafts.length ?? 0;
      stream.position += share.rowCount - drafts;
      const tokens = sampled[i]?.tokens ?? [];
      stream.position += Math.max(0, tokens.length - 1);
      stream.tokens.push(...tokens);
      stream.ids.push(...tokens.map(({ id }) => id));
      return sampled[i]?.draft ?? [];
    });
  }
  throw new Error('no stage has the head');
}

/** Feeds the prompt in chunks of the given lengths, then generates one token at a time. Resolves to the tokens. */
async function generate(
  stages: readonly ServeStage[],
  { chunks, ...options }: { chunks: readonly number[] } & ConstructorParameters<typeof Stream>[0],
): Promise<Sample[]> {
  const stream = new Stream(options);
  for (const length of chunks) await step(stages, [{ stream, share: stream.share(length) }]);
  while (!stream.done) await step(stages, [{ stream, share: stream.share(1) }]);
  for (const stage of stages) stage.end({ sequences: [stream.name], keepCaches: false });
  return stream.tokens;
}

const MODELS = [
  ['untied', { qkv_bias: false, tie_weights: false }, null],
  ['tied', { qkv_bias: true, tie_weights: true }, null],
  ['int8', { qkv_bias: true, tie_weights: false }, 'int8'],
  ['int4', { qkv_bias: false, tie_weights: true }, 'int4'],
] as const;

describe.each(
  [onnx, tensorflow].flatMap((engine) =>
    MODELS.map(([name, flags, quantization]) => [name, engine.name, { engine, flags, quantization }] as const),
  ),
)('a model: %s, on %s', (_, __, { engine, flags, quantization }) => {
  const config: GptConfig = { ...CONFIG, ...flags };
  let stages: ServeStage[];
  let reference: Sample[];

  beforeAll(async () => {
    stages = await loadStages(config, ONE, { quantization, engine });
    reference = await generate(stages, { chunks: [64, 6], count: 80 });
  });
  afterAll(async () => {
    for (const stage of stages) await stage.close();
  });

  test('chunks of the prompt, down to single rows, change no bit of what follows', async () => {
    expect(await generate(stages, { chunks: [70], count: 80 })).toEqual(reference);
    expect(await generate(stages, { chunks: [1, 2, 3, 32, 31, 1], count: 80 })).toEqual(reference);
    expect(await generate(stages, { chunks: Array.from({ length: 70 }, () => 1), count: 20 })).toEqual(
      reference.slice(0, 20),
    );
  });

  test('a generated token has the bits of the same token in a prompt', async () => {
    const longer = [...PROMPT, ...reference.slice(0, 40).map(({ id }) => id)];
    expect(await generate(stages, { chunks: [64, 46], count: 40, prompt: longer })).toEqual(reference.slice(40));
  });

  test('other sequences in the same steps, joining and leaving, change no bit', async () => {
    const streams = Array.from({ length: 11 }, (_, i) => {
      const prompt = i % 3 === 0 ? PROMPT : PROMPT.slice(0, 5 + 6 * i).map((id) => (id + i) % 61);
      return new Stream({ prompt, count: i % 3 === 0 ? 80 : 10 + i });
    });
    for (let turn = 0; streams.some(({ done }) => !done); turn++) {
      const steps = streams.flatMap((stream, i) => {
        // Stream i joins at turn i, and prompts come in chunks of different lengths.
        if (stream.done || turn < i) return [];
        const rest = stream.ids.length - stream.position;
        return [{ stream, share: stream.share(Math.min(rest, 7 + 10 * i)) }];
      });
      await step(stages, steps);
    }
    for (const stream of streams.filter((_, i) => i % 3 === 0)) expect(stream.tokens).toEqual(reference);
  });

  test('guesses, right and wrong, change the number of steps and no bit', async () => {
    for (const wrongEvery of [0, 2, 3]) {
      const stream = new Stream({ count: 80 });
      await step(stages, [{ stream, share: stream.share(70) }]);
      let steps = 0;
      while (!stream.done) {
        const at = stream.tokens.length;
        const drafts = reference.slice(at, Math.min(at + 5, 79)).map(({ id }) => id);
        if (wrongEvery > 0 && steps % wrongEvery === 0) drafts.fill(60, Math.floor(drafts.length / 2));
        await step(stages, [{ stream, share: stream.share(1, { drafts }) }]);
        steps += 1;
      }
      expect(stream.tokens).toEqual(reference);
      expect(steps).toBeLessThan(45);
      if (wrongEvery === 0) expect(steps).toBe(14);
    }
  });

  test('caches side by side, with different numbers of guesses and in seats that others have left, change no bit', async () => {
    const streams = [80, 12, 80, 30, 80].map((count) => new Stream({ count }));
    for (let turn = 0; streams.some(({ done }) => !done); turn++) {
      const steps = streams.flatMap((stream, i) => {
        if (stream.done || turn < 4 * i) return [];
        if (stream.position < 70) return [{ stream, share: stream.share(70) }];
        const at = stream.tokens.length;
        const drafts = reference.slice(at, Math.min(at + ((turn + i) % 4), 79)).map(({ id }) => id);
        return [{ stream, share: stream.share(1, { drafts }) }];
      });
      await step(stages, steps);
      for (const { name, done } of streams) {
        if (done) for (const stage of stages) stage.end({ sequences: [name], keepCaches: false });
      }
    }
    for (const { tokens } of streams) expect(tokens).toEqual(reference.slice(0, tokens.length));
    expect(streams.map(({ tokens }) => tokens.length)).toEqual([80, 12, 80, 30, 80]);
  });

  test('a beginning that is taken from another cache changes no bit', async () => {
    const first = new Stream({ count: 20 });
    await step(stages, [{ stream: first, share: first.share(70) }]);
    while (!first.done) await step(stages, [{ stream: first, share: first.share(1) }]);
    for (const stage of stages) stage.end({ sequences: [first.name], keepCaches: true });
    for (const length of [16, 63, 64, 69]) {
      const fork = { from: first.name, length };
      const stream = new Stream({ count: 80 });
      await step(stages, [{ stream, share: stream.share(70 - length, { fork }) }]);
      while (!stream.done) await step(stages, [{ stream, share: stream.share(1) }]);
      expect(stream.tokens).toEqual(reference);
    }
  });

  test('a sampled sequence repeats with its seed, and differs with another seed and from the next sample', async () => {
    const sampling = { temperature: 1, topK: 20, seed: 3 };
    const sampled = await generate(stages, { chunks: [70], count: 30, sampling });
    expect(await generate(stages, { chunks: [64, 6], count: 30, sampling })).toEqual(sampled);
    const seeded = { ...sampling, seed: 4 };
    expect(await generate(stages, { chunks: [70], count: 30, sampling: seeded })).not.toEqual(sampled);
    expect(await generate(stages, { chunks: [70], count: 30, sampling, sample: 1 })).not.toEqual(sampled);
  });

  test('logprobs are those of a distribution', () => {
    for (const { logprob } of reference) {
      expect(logprob).toBeLessThan(0);
      expect(logprob).toBeGreaterThan(-Math.log(61) - 1);
    }
  });
});

describe.each(MODELS)('a model whose blocks are one program: %s', (_, flags, quantization) => {
  const config: GptConfig = { ...CONFIG, ...flags };
  const runs: string[] = [];
  const counting: typeof onnx = {
    ...onnx,
    compile: async (graph, options) => {
      const program = await onnx.compile(graph, options);
      const run: typeof program.run = (...args) => {
        runs.push(graph.name);
        return program.run(...args);
      };
      return { ...program, run };
    },
  };

  test('has the bits of one block at a time, and one run for the rows of a group', async () => {
    const passing = await loadStages(config, ONE, { quantization, engine: counting });
    const byBlock = await loadStages(config, ONE, { quantization, engine: { ...counting, writesInPlace: false } });
    const told: Sample[][] = [];
    for (const stages of [byBlock, passing]) {
      // The streams run side by side with different numbers of rows. At last one is alone, and grows beyond the end of its cache.
      const streams = [64, 30, 12].map((count) => new Stream({ count, sampling: { ...GREEDY, logprobs: 3 } }));
      for (const stream of streams) await step(stages, [{ stream, share: stream.share(70) }]);
      runs.splice(0);
      let steps = 0;
      while (streams.some(({ done }) => !done)) {
        const going = streams.filter(({ done }) => !done);
        await step(
          stages,
          going.map((stream, i) => ({ stream, share: stream.share(1, { drafts: PROMPT.slice(0, (steps + i) % 3) }) })),
        );
        steps += 1;
      }
      told.push(streams.flatMap(({ tokens }) => tokens));
      if (stages === passing) expect(runs).toEqual(Array.from({ length: steps }, () => 'pass 0 to 3'));
      else expect(runs.length).toBeGreaterThanOrEqual(5 * steps);
    }
    expect(told[1]).toEqual(told[0]);
    for (const stage of [...passing, ...byBlock]) await stage.close();
  });
});

test('two programs with the same weights ask for each of them once', async () => {
  const tensors = new Map(
    [...initialTensors(CONFIG, { seed: 5, scheme: 'gpt2' })].map(({ name, data }) => [name, data]),
  );
  const asked: string[] = [];
  const weights = {
    get: (name: string): Float32Array | undefined => {
      asked.push(name);
      return tensors.get(name);
    },
    quantized: (name: string, shape: QuantizedSource): QuantizedMatrix => {
      asked.push(`${name} in few bits`);
      return quantize(tensors.get(name)!, shape);
    },
  };
  const setup = { config: CONFIG, stage: ONE[0], quantization: 'int8' } as const;
  const stage = await ServeStage.load(onnx, setup, weights);
  // Each of three blocks has four matrices, two norms of two tensors and three biases. The head has a matrix and a norm of two
  // tensors. There are two embeddings.
  expect(asked).toHaveLength(3 * 4 + 1 + 3 * 4 + 2 + 3 * 3 + 2);
  expect(new Set(asked).size).toBe(asked.length);
  await stage.close();
});

test('repeated ids are guessed from their last occurrence', async () => {
  const stages = await loadStages(CONFIG, ONE);
  const prompt = [1, 2, 3, 4, 5, 6, 7, 8, 9, 1, 2, 3];
  const stream = new Stream({ prompt, count: 1, sampling: { ...GREEDY } });
  const [draft] = await step(stages, [{ stream, share: stream.share(prompt.length) }]);
  const [{ id }] = stream.tokens;
  const all = [...prompt, id];
  // The newest three ids are searched among the earlier ones, and then the newest two.
  const last = [3, 2].map((length) => {
    const tail = all.slice(-length).join();
    const ends = all.map((_, end) => end).filter((end) => all.slice(end - length, end).join() === tail);
    return ends.filter((end) => end >= length && end < all.length).at(-1);
  });
  const end = last.find((at) => at !== undefined);
  expect(draft).toEqual(end === undefined ? [] : all.slice(end, end + 4));
  for (const stage of stages) await stage.close();
});

test.each([null, 'int8', 'int4'] as const)('three stages give the bits of one: %s', async (quantization) => {
  const config: GptConfig = { ...CONFIG, qkv_bias: true };
  const split = [0, 1, 2].map((block) => ({
    firstBlock: block,
    endBlock: block + 1,
    embeds: block === 0,
    head: block === 2,
  }));
  const [whole, parts] = [
    await loadStages(config, ONE, { quantization }),
    await loadStages(config, split, { quantization }),
  ];
  expect(await generate(parts, { chunks: [64, 6], count: 40 })).toEqual(
    await generate(whole, { chunks: [70], count: 40 }),
  );
  for (const stage of [...whole, ...parts]) await stage.close();
});

test('a quantized model gives nearly the same logprobs as the model', async () => {
  const logprobs = async (quantization: Quantization | null): Promise<number[]> => {
    const stages = await loadStages(CONFIG, ONE, { quantization });
    const tokens = await generate(stages, { chunks: [70], count: 1, sampling: GREEDY });
    for (const stage of stages) await stage.close();
    return tokens.map(({ logprob }) => logprob);
  };
  const [full] = await logprobs(null);
  expect(Math.abs((await logprobs('int8'))[0] - full)).toBeLessThan(0.01);
  expect(Math.abs((await logprobs('int4'))[0] - full)).toBeLessThan(0.2);
});
