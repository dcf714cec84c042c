// What is kept of sequences that have ended.

import { describe, expect, test } from 'vitest';
import { Retained, RETAINED_MAX } from '../../src/daemon/retained.ts';

/** Sequences of `length` ids. */
function retained(count: number, length: number): Retained {
  const all = new Retained();
  for (let i = 0; i < count; i++)
    all.add(
      `s${i}`,
      Array.from({ length }, () => i),
    );
  return all;
}

describe('caches of ended sequences', () => {
  test('are at most 256, however short they are: the least recently used go', () => {
    const all = retained(RETAINED_MAX + 3, 2);
    all.touch('s0');
    expect(all.evict(1_000_000, new Set(['s2']))).toEqual(['s1', 's3', 's4']);
    expect([...all.entries()].length).toBe(RETAINED_MAX);
  });

  test('take at most the positions that are left, in steps of 64', () => {
    expect(retained(5, 65).evict(3 * 128, new Set())).toEqual(['s0', 's1']);
  });
});
