// Sampling against a plain reference that sorts, and the properties a client relies on.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { sample, type SampleOptions } from '../../src/model/sampling.ts';

/** The same definition without any shortcut: sorts the vocabulary, filters, renormalizes, walks ids in order. */
function reference(logits: Float32Array, options: SampleOptions): { kept: number[]; id: number; logprob: number } {
  const { temperature, topK = Infinity, topP = 1, minP = 0, repetitionPenalty = 1, history = [], u } = options;
  const penalized = Array.from(logits, (logit, id) =>
    history.includes(id) ? (logit > 0 ? logit / repetitionPenalty : logit * repetitionPenalty) : logit,
  );
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
    kept = kept.filter((id) => weight(id) >= minP);
    kept.sort((a, b) => a - b);
  }
  const weights = kept.map((id) => (temperature === 0 ? 1 : Math.exp((penalized[id] - max) / temperature)));
  const total = weights.reduce((sum, weight) => sum + weight, 0);
  let sum = 0;
  const at = weights.findIndex((weight) => (sum += weight) > u * total);
  const id = kept[at === -1 ? kept.length - 1 : at];
  const rawMax = Math.max(...logits);
  const logSum = Math.log(logits.reduce((all, logit) => all + Math.exp(logit - rawMax), 0));
  return { kept, id, logprob: logits[id] - rawMax - logSum };
}

const logitsOf = (seed: number, V: number): Float32Array =>
  Float32Array.from({ length: V }, (_, id) => 3 * Math.sin(seed * 12.9898 + id * 78.233) + Math.cos(id * id));

test('it picks what the reference picks, under every mix of filters', () => {
  const optional = <T>(arbitrary: fc.Arbitrary<T>): fc.Arbitrary<T | undefined> =>
    fc.option(arbitrary, { nil: undefined });
  fc.assert(
    fc.property(
      fc.integer({ min: 1, max: 1000 }),
      fc.integer({ min: 1, max: 200 }),
      fc.record({
        temperature: fc.constantFrom(0, 0.1, 0.8, 1, 2.5),
        topK: optional(fc.integer({ min: 1, max: 250 })),
        topP: optional(fc.double({ min: 0.01, max: 1, noNaN: true })),
        minP: optional(fc.double({ min: 0, max: 1, noNaN: true })),
        repetitionPenalty: optional(fc.double({ min: 0.5, max: 2, noNaN: true })),
        history: optional(fc.array(fc.integer({ min: 0, max: 220 }), { maxLength: 20 })),
        u: fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true }),
      }),
      (seed, V, options) => {
        const logits = logitsOf(seed, V);
        const wanted = reference(logits, options);
        const actual = sample(logits, options);
        expect(actual.id).toBe(wanted.id);
        expect(actual.logprob).toBeCloseTo(wanted.logprob, 12);
      },
    ),
    { numRuns: 1000, seed: 1 },
  );
});

test('greedy takes the first of equal logits and reports its raw log-probability', () => {
  const actual = sample(Float32Array.of(1, 2, 2, 0), { temperature: 0, u: 0.9 });
  expect(actual.id).toBe(1);
  expect(actual.logprob).toBeCloseTo(2 - Math.log(Math.exp(1) + 2 * Math.exp(2) + 1), 14);
});

test('log-probabilities of a whole vocabulary sum to one in double precision', () => {
  const logits = logitsOf(3, 1000);
  let sum = 0;
  for (let id = 0; id < logits.length; id++) {
    // A greedy pick among logits whose history pushes everything else down is that id, with its raw log-probability.
    const history = Array.from(logits.keys()).filter((other) => other !== id);
    const shifted = logits.map((logit) => logit - 10);
    const picked = sample(shifted, { temperature: 0, repetitionPenalty: 100, history, u: 0 });
    expect(picked.id).toBe(id);
    sum += Math.exp(picked.logprob);
  }
  expect(sum).toBeCloseTo(1, 12);
});

test('top-k keeps exactly k, the lower id on ties', () => {
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

test('smaller vocabularies are not disturbed by larger ones seen before', () => {
  const options = { temperature: 1, topK: 3, topP: 0.9, u: 0.7 };
  const before = sample(logitsOf(1, 10), options);
  sample(logitsOf(2, 5000), options);
  expect(sample(logitsOf(1, 10), options)).toEqual(before);
});

test.each([NaN, Infinity, -Infinity])('a logit of %d fails as the engine, by name', (value) => {
  const logits = new Float32Array(100);
  logits[42] = value;
  expect(() => sample(logits, { temperature: 1, u: 0.5 })).toThrow(
    expect.objectContaining({ code: 'engine_failed', message: expect.stringContaining('token 42') as string }) as Error,
  );
});
