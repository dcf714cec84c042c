// Checks Philox4x32-10 against the known answers of Random123 (kat_vectors), and the properties on which repeatability depends.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { dropoutMask, philox, PURPOSE, setAddress, uniform } from '../../../src/model/random/philox.ts';

test.each([
  [
    [0, 0, 0, 0, 0, 0],
    [0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8],
  ],
  [
    [0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff, 0xffffffff],
    [0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd],
  ],
  [
    [0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0],
    [0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1],
  ],
])('known answer of %j', (input, answer) => {
  const out = new Uint32Array(4);
  philox(out, Uint32Array.from(input));
  expect([...out]).toEqual(answer);
});

test('the address fills counter and key as documented, and every bit of it counts', () => {
  const input = new Uint32Array(6);
  setAddress(input, { seed: 2 ** 52 + 3, purpose: PURPOSE.sampling, step: 2 ** 40 + 5, index: 2 ** 33 + 7 });
  expect([...input]).toEqual([7, 2, 5, 6 * 2 ** 24 + 2 ** 8, 3, 2 ** 20]);
});

test('an address outside 2^53 is refused', () => {
  const address = { seed: 1, purpose: PURPOSE.sampling, step: 1, index: 1 };
  expect(() => uniform({ ...address, seed: -1 })).toThrow('below 2^53');
  expect(() => uniform({ ...address, index: 2 ** 53 })).toThrow('below 2^53');
  expect(() => uniform({ ...address, step: 0.5 })).toThrow('below 2^53');
});

test('uniform draws are the two words of the block, in [0, 1), with the mean and variance of a uniform', () => {
  const address = { seed: 123, purpose: PURPOSE.sampling, step: 4 };
  const n = 100_000;
  let sum = 0;
  let squares = 0;
  let least = 1;
  let most = 0;
  for (let index = 0; index < n; index++) {
    const u = uniform({ ...address, index });
    least = Math.min(least, u);
    most = Math.max(most, u);
    sum += u;
    squares += u * u;
  }
  expect(least).toBeGreaterThanOrEqual(0);
  expect(most).toBeLessThan(1);
  expect(sum / n).toBeCloseTo(0.5, 2);
  expect(squares / n).toBeCloseTo(1 / 3, 2);
  expect(uniform({ seed: 0, purpose: PURPOSE.dropoutEmbedding, step: 0, index: 0 })).toBe(firstDraw());
});

function firstDraw(): number {
  const out = new Uint32Array(4);
  philox(out, Uint32Array.of(0, 0, 0, 1 << 24, 0, 0));
  return Number((BigInt(out[0] >>> 5) << 26n) | BigInt(out[1] >>> 6)) / 2 ** 53;
}

test('draws differ when the seed, the purpose, the step or the index differ', () => {
  const address = { seed: 1, purpose: PURPOSE.shuffle, step: 1, index: 1 };
  const draws = [
    address,
    { ...address, seed: 2 },
    { ...address, purpose: PURPOSE.sampling },
    { ...address, step: 2 },
    { ...address, index: 2 },
    { ...address, seed: 1 + 2 ** 32 },
    { ...address, step: 1 + 2 ** 32 },
    { ...address, index: 1 + 2 ** 32 },
  ].map(uniform);
  expect(new Set(draws).size).toBe(draws.length);
});

const dropout = { seed: 11, purpose: PURPOSE.dropoutAttention, step: 3 } as const;

test('a mask is the same however its stream is cut', () => {
  const whole = new Uint8Array(1000);
  dropoutMask(whole, { ...dropout, index: 0, rate: 0.3 });
  fc.assert(
    fc.property(fc.integer({ min: 0, max: 999 }), fc.integer({ min: 0, max: 60 }), (index, length) => {
      const end = Math.min(1000, index + length);
      const part = new Uint8Array(end - index).fill(7);
      dropoutMask(part, { ...dropout, index, rate: 0.3 });
      expect(part).toEqual(whole.slice(index, end));
    }),
  );
});

test('a lane keeps its element from round(rate * 65536) on', () => {
  const rate = 0.4;
  const mask = new Uint8Array(8);
  dropoutMask(mask, { ...dropout, index: 16, rate });
  const input = new Uint32Array(6);
  const block = new Uint32Array(4);
  setAddress(input, { ...dropout, index: 2 });
  philox(block, input);
  const lanes = [...block].flatMap((word) => [word & 0xffff, word >>> 16]);
  expect([...mask]).toEqual(lanes.map((lane) => (lane >= Math.round(rate * 65536) ? 1 : 0)));
});

test.each([0, 0.1, 0.5, 0.9])('rate %d drops that share of the elements', (rate) => {
  const n = 200_000;
  const mask = new Uint8Array(n);
  dropoutMask(mask, { ...dropout, index: 5, rate });
  const kept = mask.reduce((sum, keep) => sum + keep, 0);
  // The bound is five standard deviations.
  expect(Math.abs(kept / n - (1 - rate))).toBeLessThanOrEqual(5 * Math.sqrt((rate * (1 - rate)) / n));
});
