// Checks which caches of ended sequences are kept.

import { describe, expect, test } from 'vitest';
import { Retained, RETAINED_CONTEXTS, RETAINED_MAX } from '../../../src/daemon/serving/retained.ts';

const CONTEXT = 65_536;

/** Returns the retained caches of `count` sequences of `length` ids. */
function retained(count: number, length: number): Retained {
  const all = new Retained(CONTEXT);
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

  test('count the positions that their stages may have gone on to', () => {
    const all = new Retained(CONTEXT);
    for (const name of ['s0', 's1', 's2']) all.add(name, [1, 2, 3], 65);
    expect(all.evict(2 * 128, new Set())).toEqual(['s0']);
  });

  test('take at most the positions of two full contexts, wherever there is room', () => {
    const all = retained(RETAINED_CONTEXTS + 2, CONTEXT - 10);
    expect(all.evict(Number.MAX_SAFE_INTEGER, new Set())).toEqual(['s0', 's1']);
  });
});
