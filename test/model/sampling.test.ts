// Checks sampling against a plain reference that sorts, and the properties on which a client relies.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { sample as sampleRow, type Logprob, type Sample, type SampleOptions } from '../../src/model/sampling.ts';

/**
 * Samples with the largest logit and the sum of exponentials, which the head's program computes. Here they are in double
 * precision.
 */
function sample(logits: Float32Array, options: SampleOptions): Sample {
  const max = logits.every(Number.isFinite) ? Math.max(...logits) : NaN;
  const logSum = Math.log(logits.reduce((all, logit) => all + Math.exp(logit - max), 0));
  return sampleRow({ logits, max, logSum }, options);
}

/** Samples by the definition without any shortcut: it sorts the vocabulary, filters, renormalizes, and walks the ids in order. */
function reference(
  logits: Float32Array,
  options: SampleOptions,
): { id: number; logprob: number; top: readonly Logprob[] } {
  const { temperature, topK = Infinity, topP = 1, minP = 0, repetitionPenalty = 1, history = [], u } = options;
  const { presencePenalty = 0, frequencyPenalty = 0, logitBias = new Map<number, number>(), bannedIds = [] } = options;
  const generated = history.slice(options.promptLength ?? 0);
  const penalized = Array.from(logits, (logit, id) => {
    let score = logit;
    if (history.includes(id)) score = score > 0 ? score / repetitionPenalty : score * repetitionPenalty;
    const count = generated.filter((other) => other === id).length;
    if (count > 0) score -= presencePenalty + count * frequencyPenalty;
    score += logitBias.get(id) ?? 0;
    return bannedIds.includes(id) ? -Infinity : score;
  });
  const max = Math.max(...penalized);
  const order = penalized.map((_, id) => id).sort((a, b) => penalized[b] - penalized[a] || a - b);
  let kept: number[];
  if (temperature === 0) {
    kept = order.slice(0, 1);
  } else {
    const weight = (id: number): number => Math.exp((penalized[id] - max) / temperature);
    kept = order.slice(0, topK);
    if (topP < 1) {
      const total = kept.reduce((sum, id) => sum + weight(id), 0);
      let mass = 0;
      kept = kept.filter((id) => {
        const before = mass;
        mass += weight(id);
        return before < topP * total;
      });
    }
    kept = kept.filter((id) => weight(id) >= minP && weight(id) > 0);
    kept.sort((a, b) => a - b);
  }
  const weights = kept.map((id) => (temperature === 0 ? 1 : Math.exp((penalized[id] - max) / temperature)));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  let sum = 0;
  const at = weights.findIndex((weight) => (sum += weight) > u * total);
  const id = kept[at === -1 ? kept.length - 1 : at];
  const rawMax = Math.max(...logits);
  const logSum = Math.log(logits.reduce((all, logit) => all + Math.exp(logit - rawMax), 0));
  const logprob = (token: number): number => logits[token] - rawMax - logSum;
  const likeliest = Array.from(logits.keys()).sort((a, b) => logits[b] - logits[a] || a - b);
  const top = likeliest.slice(0, options.logprobs ?? 0).map((token) => ({ id: token, logprob: logprob(token) }));
  return { id, logprob: logprob(id), top };
}

const logitsOf = (seed: number, V: number): Float32Array =>
  Float32Array.from({ length: V }, (_, id) => 3 * Math.sin(seed * 12.9898 + id * 78.233) + Math.cos(id * id));

/** Returns logits of which many are equal. */
const coarseLogits = (seed: number, V: number): Float32Array => logitsOf(seed, V).map(Math.round);

const optional = <T>(arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> =>
  fc.option(arbitrary, { nil: undefined });
const real = (min: number, max: number): fc.Arbitrary<number> => fc.double({ min, max, noNaN: true });
const someId = fc.integer({ min: 0, max: 220 });

const anyOptions = fc
  .record({
    temperature: fc.constantFrom(0, 0.1, 0.8, 1, 2.5),
    topK: optional(fc.integer({ min: 1, max: 250 })),
    topP: optional(real(0.01, 1)),
    minP: optional(real(0, 1)),
    repetitionPenalty: optional(real(0.5, 2)),
    presencePenalty: optional(real(-2, 2)),
    frequencyPenalty: optional(real(-2, 2)),
    logitBias: optional(fc.array(fc.tuple(someId, real(-100, 100)), { maxLength: 5 }).map((pairs) => new Map(pairs))),
    bannedIds: optional(fc.array(someId, { maxLength: 50 })),
    history: optional(fc.array(someId, { maxLength: 20 })),
    promptLength: optional(fc.integer({ min: 0, max: 20 })),
    logprobs: optional(fc.integer({ min: 0, max: 20 })),
    u: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
  })
  // One id must be left in every vocabulary.
  .map((options) => ({ ...options, bannedIds: options.bannedIds?.filter((id) => id !== 0) }));

test.each([
  ['logits of all kinds', logitsOf],
  ['logits among which many are equal', coarseLogits],
])('it picks what the reference picks from %s, under every mix of options', (_what, logitsFor) => {
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 1000 }), fc.integer({ min: 1, max: 200 }), anyOptions, (seed, V, options) => {
      const logits = logitsFor(seed, V);
      const untouched = logits.slice();
      const wanted = reference(logits, options);
      const actual = sample(logits, options);
      expect(actual.id).toBe(wanted.id);
      expect(actual.logprob).toBeCloseTo(wanted.logprob, 12);
      expect(actual.top?.map(({ id }) => id) ?? []).toEqual(wanted.top.map(({ id }) => id));
      for (const [i, { logprob }] of wanted.top.entries()) expect(actual.top![i].logprob).toBeCloseTo(logprob, 12);
      expect(logits).toEqual(untouched);
    }),
    { numRuns: 1500, seed: 1 },
  );
});

test("it picks what the reference picks from a vocabulary of GPT-2's size", () => {
  const V = 50257;
  const cases = [
    { temperature: 0.8, topK: 40 },
    { temperature: 1, topP: 0.9 },
    { temperature: 1.2, topK: 1000, topP: 0.5, minP: 0.01 },
    { temperature: 1 },
    { temperature: 0, repetitionPenalty: 1.3, history: [3, 5, 7], logprobs: 20 },
  ];
  for (const [seed, options] of cases.entries()) {
    for (const u of [0, 0.3, 0.999]) {
      const logits = logitsOf(seed + 1, V);
      const wanted = reference(logits, { ...options, u });
      const { top = [], ...actual } = sample(logits, { ...options, u });
      expect(actual.id).toBe(wanted.id);
      expect(actual.logprob).toBeCloseTo(wanted.logprob, 10);
      expect(top.map(({ id }) => id)).toEqual(wanted.top.map(({ id }) => id));
    }
  }
});

test('a logprob has the same bits whatever the options', () => {
  const logits = logitsOf(9, 500);
  const of = new Map<number, number>();
  for (let i = 0; i < 400; i++) {
    const u = i / 400;
    for (const options of [
      { temperature: 1 },
      { temperature: 1, topP: 0.99 },
      { temperature: 2, topK: 400, logprobs: 3 },
    ]) {
      const { id, logprob, top = [] } = sample(logits, { ...options, u });
      for (const told of [{ id, logprob }, ...top]) {
        expect(told.logprob).toBe(of.get(told.id) ?? told.logprob);
        of.set(told.id, told.logprob);
      }
    }
  }
  expect(of.size).toBeGreaterThan(100);
});

test('penalties count what was generated, the repetition penalty the prompt too', () => {
  const logits = Float32Array.of(3, 2.9, 2.8, 0);
  const history = [0, 1, 1];
  const greedy = (options: object): number => sample(logits, { temperature: 0, u: 0, history, ...options }).id;
  expect(greedy({ promptLength: 3, presencePenalty: 2, frequencyPenalty: 2 })).toBe(0);
  expect(greedy({ promptLength: 1, presencePenalty: 2 })).toBe(0);
  expect(greedy({ promptLength: 0, presencePenalty: 0.15 })).toBe(0);
  expect(greedy({ promptLength: 0, presencePenalty: 0.5 })).toBe(2);
  expect(greedy({ promptLength: 0, frequencyPenalty: 0.08 })).toBe(0);
  expect(greedy({ promptLength: 3, repetitionPenalty: 1.2 })).toBe(2);
});

test('banned ids are never picked, an id with a large bias always', () => {
  const logits = Float32Array.of(5, 1, 0, 0);
  for (let i = 0; i < 100; i++) {
    expect([0, 2]).not.toContain(sample(logits, { temperature: 2, bannedIds: [0, 2], u: i / 100 }).id);
    expect(sample(logits, { temperature: 1, logitBias: new Map([[3, 100]]), u: (i + 0.5) / 100 }).id).toBe(3);
  }
  expect(sample(logits, { temperature: 0, bannedIds: [0], u: 0 })).toMatchObject({ id: 1 });
  expect(() => sample(logits, { temperature: 1, bannedIds: [0, 1, 2, 3], u: 0 })).toThrow('Every token is banned');
});

test('greedy takes the first of equal logits and reports its raw log-probability', () => {
  const actual = sample(Float32Array.of(1, 2, 2, 0), { temperature: 0, u: 0.9 });
  expect(actual.id).toBe(1);
  expect(actual.logprob).toBeCloseTo(2 - Math.log(Math.exp(1) + 2 * Math.exp(2) + 1), 14);
});

test('the probabilities of a whole vocabulary sum to one in double precision', () => {
  const logits = logitsOf(3, 1000);
  let sum = 0;
  for (let id = 0; id < logits.length; id++) {
    // The history lowers every other logit, so the greedy pick is this id, with its raw log-probability.
    const history = Array.from(logits.keys()).filter((other) => other !== id);
    const shifted = logits.map((logit) => logit - 10);
    const picked = sample(shifted, { temperature: 0, repetitionPenalty: 100, history, u: 0 });
    expect(picked.id).toBe(id);
    sum += Math.exp(picked.logprob);
  }
  expect(sum).toBeCloseTo(1, 12);
});

test('top-k keeps exactly k ids, the lower ones of equal logits', () => {
  const logits = Float32Array.of(1, 1, 1, 1, 0);
  const ids = Array.from({ length: 100 }, (_, i) => sample(logits, { temperature: 1, topK: 2, u: i / 100 }).id);
  expect(new Set(ids)).toEqual(new Set([0, 1]));
});

test('top-p keeps the token that crosses the threshold', () => {
  const logits = Float32Array.from([0.5, 0.3, 0.15, 0.05], Math.log);
  const kept = (topP: number): Set<number> =>
    new Set(Array.from({ length: 1000 }, (_, i) => sample(logits, { temperature: 1, topP, u: i / 1000 }).id));
  expect(kept(0.4)).toEqual(new Set([0]));
  expect(kept(0.7)).toEqual(new Set([0, 1]));
  expect(kept(0.9)).toEqual(new Set([0, 1, 2]));
  expect(kept(1)).toEqual(new Set([0, 1, 2, 3]));
});

test('min-p is relative to the most probable token', () => {
  const logits = Float32Array.from([0.5, 0.3, 0.15, 0.05], Math.log);
  const ids = Array.from({ length: 1000 }, (_, i) => sample(logits, { temperature: 1, minP: 0.25, u: i / 1000 }).id);
  expect(new Set(ids)).toEqual(new Set([0, 1, 2]));
});

test('draws follow the probabilities', () => {
  const logits = Float32Array.from([0.5, 0.3, 0.15, 0.05], Math.log);
  const counts = [0, 0, 0, 0];
  for (let i = 0; i < 10_000; i++) counts[sample(logits, { temperature: 1, u: (i + 0.5) / 10_000 }).id]++;
  expect(counts).toEqual([5000, 3000, 1500, 500]);
});

test('a very low temperature and extreme logits stay finite', () => {
  const logits = Float32Array.of(-3e38, 0, 3e38);
  expect(sample(logits, { temperature: 1e-6, topP: 0.9, u: 0.99 })).toEqual({ id: 2, logprob: 0 });
});

test('a larger vocabulary changes nothing for smaller ones that come after it', () => {
  const options = { temperature: 1, topK: 3, topP: 0.9, u: 0.7 };
  const before = sample(logitsOf(1, 10), options);
  sample(logitsOf(2, 5000), options);
  expect(sample(logitsOf(1, 10), options)).toEqual(before);
});

test.each([NaN, Infinity, -Infinity])('a logit of %d fails as a named fault of the engine', (value) => {
  const logits = new Float32Array(100);
  logits[42] = value;
  expect(() => sample(logits, { temperature: 1, u: 0.5 })).toThrow(
    expect.objectContaining({ code: 'engine_failed', message: expect.stringContaining('token 42') as string }) as Error,
  );
});
