// Checks the generator against published figures: mt19937ar.out, the C++ standard and PyTorch.

import { expect, test } from 'vitest';
import { createMt19937 } from '../../../src/model/random/mt19937.ts';

test('seed 5489 gives the reference sequence', () => {
  const generator = createMt19937(5489);
  expect([generator.next(), generator.next(), generator.next()]).toEqual([3499211612, 581869302, 3890346734]);
});

test('the 10000th draw is the number that the C++ standard requires of mt19937', () => {
  const draws = new Uint32Array(10_000);
  createMt19937(5489).fill(draws);
  expect(draws[9999]).toBe(4123659995);
});

test('torch.manual_seed(0); torch.rand(2) is 0.4963, 0.7682', () => {
  const generator = createMt19937(0);
  const uniform = (): number => (generator.next() & 0xffffff) / 2 ** 24;
  expect(uniform()).toBeCloseTo(0.4963, 4);
  expect(uniform()).toBeCloseTo(0.7682, 4);
});

test('chunks of any length give the same stream', () => {
  const whole = new Uint32Array(5000);
  createMt19937(7).fill(whole);
  const generator = createMt19937(7);
  const pieces: number[] = [];
  for (let size = 1; pieces.length + size <= whole.length; size = (size * 7) % 643) {
    const piece = new Uint32Array(size);
    generator.fill(piece);
    pieces.push(...piece, generator.next());
  }
  expect(pieces.length).toBeGreaterThan(4000);
  expect(pieces).toEqual([...whole.subarray(0, pieces.length)]);
});

test('only the low 32 bits of a seed count', () => {
  expect(createMt19937(2 ** 40 + 123).next()).toBe(createMt19937(123).next());
  expect(createMt19937(124).next()).not.toBe(createMt19937(123).next());
});

test('a seed that is no integer below 2^53 is refused', () => {
  for (const seed of [-1, 0.5, 2 ** 53, NaN]) expect(() => createMt19937(seed)).toThrow('non-negative integer');
});
