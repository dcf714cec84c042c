// Checks that the memory that a sequence gives back serves the next sequence, whatever its size, and that no more is kept free
// than is in use.

import { expect, test } from 'vitest';
import { CacheMemory } from '../../../src/workers/memory/cache-memory.ts';

const place = ({ buffer, byteOffset }: Float32Array): [ArrayBufferLike, number] => [buffer, byteOffset / 4];

test('the first range that is long enough is taken, in the first segment that has one', () => {
  const memory = new CacheMemory(100);
  const [a, b, c] = [memory.take(40), memory.take(40), memory.take(40)];
  expect(place(b)).toEqual([a.buffer, 40]);
  expect(c.buffer).not.toBe(a.buffer);
  memory.give(a);
  expect(place(memory.take(20))).toEqual([a.buffer, 0]);
  expect(place(memory.take(20))).toEqual([a.buffer, 20]);
  expect(place(memory.take(20))).toEqual([a.buffer, 80]);
  expect(place(memory.take(20))).toEqual([c.buffer, 40]);
  expect(memory.length).toBe(200);
});

test('neighbouring ranges join when both are free', () => {
  const memory = new CacheMemory(100);
  const ranges = [30, 30, 40].map((length) => memory.take(length));
  for (const i of [0, 2, 1]) memory.give(ranges[i]);
  expect(memory.take(100).buffer).toBe(ranges[0].buffer);
});

test('a range that is longer than a segment has a segment of its own, which goes when more would be free than in use', () => {
  const memory = new CacheMemory(100);
  const [small, long] = [memory.take(60), memory.take(500)];
  expect(long).toHaveLength(500);
  expect(memory.length).toBe(600);
  memory.give(long);
  expect(memory.length).toBe(100);
  memory.give(small);
  expect(memory.take(100).buffer).toBe(small.buffer);
});

test('a range can be given back only once', () => {
  const memory = new CacheMemory(100);
  const range = memory.take(10);
  memory.give(range);
  expect(() => memory.give(range)).toThrow('free already');
  expect(() => memory.give(new Float32Array(10))).toThrow('not of this memory');
});
