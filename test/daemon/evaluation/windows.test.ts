// Checks which windows an evaluation reads: every token but the first is predicted exactly once, with as much context as there
// is.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { planEvaluation } from '../../../src/daemon/evaluation/windows.ts';

test('any text, context and stride: each token but the first is predicted once, and in order', () => {
  const cases = fc.record({
    tokenCount: fc.integer({ min: 2, max: 60 }),
    contextLength: fc.integer({ min: 1, max: 12 }),
    strideShare: fc.integer({ min: 1, max: 12 }),
  });
  fc.assert(
    fc.property(cases, ({ tokenCount, contextLength, strideShare }) => {
      const stride = Math.min(strideShare, contextLength);
      const plan = planEvaluation({ tokenCount, contextLength, stride });
      const predicted = Array.from({ length: plan.count }, (_, i) => plan.at(i)).flatMap(({ start, firstRow }) => {
        expect(start + plan.contextLength + 1).toBeLessThanOrEqual(tokenCount);
        return Array.from({ length: plan.contextLength - firstRow }, (_, row) => start + firstRow + row + 1);
      });
      expect(predicted).toEqual(Array.from({ length: tokenCount - 1 }, (_, i) => i + 1));
    }),
  );
});

test('a stride of half the context gives every later token at least half a context', () => {
  const plan = planEvaluation({ tokenCount: 100, contextLength: 16, stride: 8 });
  for (let i = 1; i < plan.count; i++) expect(plan.at(i).firstRow).toBeGreaterThanOrEqual(8);
});

test.each([
  [{ tokenCount: 1, contextLength: 8 }, /1 tokens: at least 2/],
  [{ tokenCount: 100, contextLength: 8, stride: 9 }, /stride is 9 and the context 8/],
])('%o is refused', (options, message) => {
  expect(() => planEvaluation(options)).toThrow(message);
});
