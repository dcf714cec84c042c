// Checks arrays that every step overwrites.

import { expect, test } from 'vitest';
import { Scratch } from '../../../src/workers/memory/reuse.ts';

test('a name keeps one array, which grows to the longest that was asked for and no further', () => {
  const scratch = new Scratch();
  const first = scratch.take('a', 100);
  expect(scratch.take('a', 40).buffer).toBe(first.buffer);
  expect(scratch.take('a', 40)).toHaveLength(40);
  expect(scratch.take('b', 100).buffer).not.toBe(first.buffer);
  const longer = scratch.take('a', 300);
  expect(longer.buffer.byteLength).toBe(1200);
  expect(scratch.take('a', 100).buffer).toBe(longer.buffer);
  scratch.clear();
  expect(scratch.take('a', 100).buffer.byteLength).toBe(400);
});
