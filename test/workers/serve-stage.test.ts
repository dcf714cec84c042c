// A model that generates on the calling thread: tokens and logprobs do not depend on how the rows got into the cache.

import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { GptConfig } from '../../src/model/config.ts';
import { initialTensors } from '../../src/model/init.ts';
import type { Engine } from '../../src/workers/engine.ts';
import { loadEngine } from '../../src/workers/load-engine.ts';
import { ServeStage } from '../../src/workers/serve-stage.ts';
import type { SampledToken, SamplingOptions, StageRange } from '../../src/workers/messages.ts';

const GREEDY: SamplingOptions = { temperature: 0, seed: 1 };
const PROMPT = Array.from({ length: 70 }, (_, i) => (i * 37 + 11) % 61);

async function loadStages(engine: Engine, config: GptConfig, ranges: readonly StageRange[]): Promise<ServeStage[]> {
  const tensors = new Map(
    [...initialTensors(config, { seed: 5, scheme: 'gpt2' })].map(({ name, data }) => [name, data]),
  );
  return await Promise.all(
    ranges.map((stage) =>
      ServeStage.load(
        engine,
        { config, stage, tokenizer: null },
        (names) => new Map(names.map((name) => [name, tensors.get(name)!])),
      ),
    ),
  );
}

/** Feeds the prompt in chunks of the given lengths, then one token at a time. */
async function generate(
  stages: readonly ServeStage[],
  {
    chunks,
    count,
    sampling = GREEDY,
    prompt = PROMPT,
  }: { chunks: readonly number[]; count: number; sampling?: SamplingOptions; prompt?: readonly number[] },
): Promise<SampledToken[]> {
  const sequence = `${Math.random()}`;
  stages.at(-1)!.begin({ lease: '', sequence, prompt, continued: [], stop: [], sampling });
  const tokens: SampledToken[] = [];
  let position = 0;
  const feed = async (ids: readonly number[], sample: boolean): Promise<void> => {
    let input: readonly number[] | Float32Array = ids;
    for (const stage of stages) {
      const request = { lease: '', sequence, position, input, sampleIndex: sample ? tokens.length : null, last: false };
      const { x, token } = await stage.step(request);
      if (token !== null) tokens.push(token);
      if (x !== null) input = x;
    }
    position += ids.length;
  };
  for (const [i, length] of chunks.entries())
    await feed(prompt.slice(position, position + length), i === chunks.length - 1);
  while (tokens.length < count) await feed([tokens.at(-1)!.id], true);
  for (const stage of stages) stage.end(sequence);
  return tokens;
}

const ENGINES = [await loadEngine('onnx'), await loadEngine('tensorflow-wasm')];
const MODELS = [
  ['untied', { qkv_bias: false, tie_weights: false }],
  ['tied', { qkv_bias: true, tie_weights: true }],
] as const;

describe.each(
  ENGINES.flatMap((engine) => MODELS.map(([name, flags]) => [name, engine.name, { flags, engine }] as const)),
)('a %s model on %s', (_, __, { flags, engine }) => {
  const config: GptConfig = {
    vocab_size: 61,
    context_length: 256,
    emb_dim: 64,
    n_heads: 4,
    n_layers: 3,
    drop_rate: 0,
    ...flags,
  };
  const one: StageRange[] = [{ firstBlock: 0, endBlock: 3, embeds: true, head: true }];
  let stages: ServeStage[];
  let reference: SampledToken[];

  beforeAll(async () => {
    stages = await loadStages(engine, config, one);
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

  test('a sampled sequence repeats with its seed and differs with another', async () => {
    const sampling = { temperature: 1, topK: 20, seed: 3 };
    const sampled = await generate(stages, { chunks: [70], count: 30, sampling });
    expect(await generate(stages, { chunks: [64, 6], count: 30, sampling })).toEqual(sampled);
    expect(await generate(stages, { chunks: [70], count: 30, sampling: { ...sampling, seed: 4 } })).not.toEqual(
      sampled,
    );
  });

  test('logprobs are those of a distribution', () => {
    for (const { logprob } of reference) {
      expect(logprob).toBeLessThan(0);
      expect(logprob).toBeGreaterThan(-Math.log(61) - 1);
    }
  });

  test('an id outside the vocabulary is refused', () => {
    expect(() =>
      stages[0].begin({ lease: '', sequence: 'x', prompt: [61], continued: [], stop: [], sampling: GREEDY }),
    ).toThrow("The prompt has token 61: the model's ids go from 0 to 60.");
  });
});

test.each(ENGINES)('three stages give the bits of one on $name', async (engine) => {
  const config: GptConfig = {
    vocab_size: 61,
    context_length: 256,
    emb_dim: 64,
    n_heads: 4,
    n_layers: 3,
    drop_rate: 0,
    qkv_bias: true,
    tie_weights: false,
  };
  const split = [0, 1, 2].map((block) => ({
    firstBlock: block,
    endBlock: block + 1,
    embeds: block === 0,
    head: block === 2,
  }));
  const [whole, parts] = [
    await loadStages(engine, config, [{ firstBlock: 0, endBlock: 3, embeds: true, head: true }]),
    await loadStages(engine, config, split),
  ];
  expect(await generate(parts, { chunks: [64, 6], count: 40 })).toEqual(
    await generate(whole, { chunks: [70], count: 40 }),
  );
  for (const stage of [...whole, ...parts]) await stage.close();
});
