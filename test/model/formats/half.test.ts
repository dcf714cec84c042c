// Checks half precision: every half stays the same when it is widened and rounded, and a value between two halves is rounded as
// IEEE 754 says.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { toHalf } from '../../../src/model/formats/half.ts';
import { toFloat32 } from '../../../src/model/formats/safetensors.ts';

const backOf = (halves: Uint16Array): Float32Array =>
  toFloat32(new Uint8Array(halves.buffer, halves.byteOffset, halves.byteLength), 'F16');

test('every half is its own rounding', () => {
  const all = Uint16Array.from({ length: 65536 }, (_, bits) => bits);
  const there = backOf(all);
  const again = toHalf(there);
  const wrong = all.filter((bits, i) => again[i] !== bits && !Number.isNaN(there[i]));
  expect([...wrong]).toEqual([]);
  expect(toHalf(Float32Array.of(NaN))[0] & 0x7fff).toBeGreaterThan(0x7c00);
});

test.each([
  [1 + 2 ** -11, 1],
  [1 + 3 * 2 ** -11, 1 + 2 ** -9],
  [1 + 2 ** -11 + 2 ** -20, 1 + 2 ** -10],
  [2 - 2 ** -12, 2],
  [65519, 65504],
  [65520, Infinity],
  [-1e9, -Infinity],
  [2 ** -25, 0],
  [1.5 * 2 ** -25, 2 ** -24],
  [2 ** -14 - 2 ** -26, 2 ** -14],
  [-0, -0],
])('%d becomes %d', (value, rounded) => {
  expect(backOf(toHalf(Float32Array.of(value)))[0]).toBe(rounded);
});

test('a value becomes one of the two halves around it, the nearer one', () => {
  fc.assert(
    fc.property(fc.float({ noNaN: true, min: Math.fround(-65000), max: Math.fround(65000) }), (value) => {
      const bits = toHalf(Float32Array.of(value));
      const [rounded, below, above] = backOf(Uint16Array.of(bits[0], bits[0] - 1, bits[0] + 1));
      const distance = Math.abs(value - rounded);
      if ((bits[0] & 0x7fff) > 0) expect(distance).toBeLessThanOrEqual(Math.abs(value - below));
      expect(distance).toBeLessThanOrEqual(Math.abs(value - above));
    }),
  );
});
