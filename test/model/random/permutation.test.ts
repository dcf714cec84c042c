// Checks that the permutation is a bijection for every length, differs by epoch and seed, and sends an index anywhere.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { permute } from '../../../src/model/random/permutation.ts';

const image = (n: number, { seed, epoch }: { seed: number; epoch: number }): number[] =>
  Array.from({ length: n }, (_, i) => permute(i, { n, seed, epoch }));

test.each([1, 2, 3, 4, 5, 16, 17, 64, 65, 1000, 4097])('it is a bijection of %i indices', (n) => {
  const sorted = image(n, { seed: 123, epoch: 0 }).sort((a, b) => a - b);
  expect(sorted).toEqual(Array.from({ length: n }, (_, i) => i));
});

test('it is a bijection for any length, seed and epoch', () => {
  const count = fc.integer({ min: 0, max: 2 ** 53 - 1 });
  fc.assert(
    fc.property(fc.integer({ min: 1, max: 300 }), count, count, (n, seed, epoch) => {
      expect(new Set(image(n, { seed, epoch })).size).toBe(n);
    }),
    { numRuns: 50 },
  );
});

test('epochs and seeds give different orders, and the same ones the same', () => {
  const first = image(50, { seed: 1, epoch: 0 });
  expect(image(50, { seed: 1, epoch: 0 })).toEqual(first);
  expect(image(50, { seed: 1, epoch: 1 })).not.toEqual(first);
  expect(image(50, { seed: 2, epoch: 0 })).not.toEqual(first);
});

test('over many epochs an index lands everywhere about equally often', () => {
  const n = 20;
  const epochs = 4000;
  const counts = new Array<number>(n).fill(0);
  for (let epoch = 0; epoch < epochs; epoch++) counts[permute(7, { n, seed: 5, epoch })]++;
  const expected = epochs / n;
  const chiSquare = counts.reduce((sum, count) => sum + (count - expected) ** 2 / expected, 0);
  // This bound is the 99.9th percentile for 19 degrees of freedom.
  expect(chiSquare).toBeLessThan(43.8);
});

test('lengths near 2^52 stay inside', () => {
  const n = 2 ** 52;
  for (const i of [0, 1, 123456789, n - 1]) {
    const to = permute(i, { n, seed: 1, epoch: 1 });
    expect(Number.isInteger(to) && to >= 0 && to < n).toBe(true);
  }
});

test('an index outside is refused', () => {
  expect(() => permute(3, { n: 3, seed: 1, epoch: 0 })).toThrow('index 3 is below 3');
  expect(() => permute(0, { n: 0, seed: 1, epoch: 0 })).toThrow('length 0');
});
