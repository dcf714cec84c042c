// Checks which rows attend in one product: sequences in neighbouring seats do so together, and each piece of a prompt by itself.

import { describe, expect, test } from 'vitest';
import { attendGroups, passage, rowsOf, type RowSpan } from '../../../src/workers/serving/attend-groups.ts';
import { CacheRoom, KvCache } from '../../../src/workers/serving/kv-cache.ts';

const SHAPE = { D: 4, H: 2, blockCount: 1 };

function caches(room: CacheRoom, lengths: readonly number[]): KvCache[] {
  return lengths.map((length) => {
    const cache = new KvCache(room);
    cache.reserve(length);
    return cache;
  });
}

/** Returns consecutive rows of a step: each cache has its number of `counts`, from position 10 on. */
const spansOf = (all: readonly KvCache[], counts: readonly number[]): RowSpan[] =>
  all.map((cache, i) => {
    const first = counts.slice(0, i).reduce((sum, count) => sum + count, 0);
    return { cache, first, count: counts[i], position: 10 };
  });

const shapes = (spans: readonly RowSpan[], { wide = false } = {}): (readonly number[])[] =>
  attendGroups(spans, { wide }).map(({ mask }) => mask.dims);

describe('groups of attention', () => {
  test('a group holds at most eight sequences, all of one capacity', () => {
    const all = caches(new CacheRoom(SHAPE), [64, 1, 30, 64, 64, 64, 64, 64, 64, 65]);
    expect(
      shapes(
        spansOf(
          all,
          Array.from({ length: 10 }, () => 1),
        ),
      ),
    ).toEqual([
      [8, 1, 2, 64],
      [1, 1, 2, 64],
      [1, 1, 2, 128],
    ]);
  });

  test('a seat whose sequence has no row divides a group, and the next cache takes a seat that was left', () => {
    const room = new CacheRoom(SHAPE);
    const all = caches(room, [20, 20, 20, 20]);
    const awake = all.filter((_, i) => i !== 1);
    expect(shapes(spansOf(awake, [1, 1, 1])).map(([N]) => N)).toEqual([1, 2]);
    all[1].free();
    const [next] = caches(room, [20]);
    expect(next.seat.index).toBe(1);
    expect(shapes(spansOf([...awake, next], [1, 1, 1, 1]))).toEqual([[4, 1, 2, 64]]);
  });

  test('a group gives each sequence as many rows as the one with the most, and pieces of sixteen rows are alone', () => {
    const all = caches(new CacheRoom(SHAPE), [64, 64, 64]);
    const spans = spansOf(all, [40, 1, 3]);
    expect(shapes(spans)).toEqual([
      [1, 1, 16, 64],
      [1, 1, 16, 64],
      [3, 1, 8, 64],
    ]);
    const groups = attendGroups(spans, { wide: false });
    expect(rowsOf(groups)).toBe(56);
    const rows = Array.from({ length: 44 }, (_, row) => row);
    expect([...passage(rows, groups).attended.data].slice(31)).toEqual(
      [31, 32, 33, 34, 35, 36, 37, 38, 39, 40, 48, 49, 50].map(BigInt),
    );
    // The piece of the prompt that has no passing row is left out.
    const passing = passage([20, 39, 40, 43], groups);
    expect(passing.groups).toEqual(groups.slice(1));
    expect([...passing.attended.data]).toEqual([4, 23, 24, 34].map(BigInt));
  });

  test('long pieces of prompts are wide, come first and look at what they need, and their remaining rows attend like the others', () => {
    const all = caches(new CacheRoom(SHAPE), [64, 400, 64]);
    const spans = spansOf(all, [1, 300, 20]);
    expect(shapes(spans, { wide: true })).toEqual([
      [1, 1, 128, 192],
      [1, 1, 128, 448],
      [1, 1, 28, 448],
      [2, 1, 4, 64],
      [1, 1, 16, 64],
      [1, 1, 16, 448],
    ]);
    const groups = attendGroups(spans, { wide: true });
    const { attended } = passage([0, 1, 300, 301, 320], groups);
    // The one wide group that is needed comes first. Behind it are the lone row with three copies, four rows of the third cache,
    // and two pieces of sixteen rows.
    expect([...attended.data]).toEqual([128, 0, 167, 132, 151].map(BigInt));
  });

  test('rows see the positions up to their own, and missing rows see what the last row sees', () => {
    const all = caches(new CacheRoom(SHAPE), [64, 64]);
    const [{ mask }] = attendGroups(spansOf(all, [1, 3]), { wide: false });
    const seen = Array.from({ length: 6 }, (_, row) =>
      (mask.data as Float32Array).subarray(row * 64, row * 64 + 64).indexOf(-Infinity),
    );
    expect(seen).toEqual([11, 11, 11, 11, 12, 13]);
  });

  test('a lone sequence has a slab of its own size, and moves with its contents beside others when they come', () => {
    const room = new CacheRoom(SHAPE);
    room.expect(1);
    const [alone] = caches(room, [64]);
    expect(alone.seat.slab.seatCount).toBe(1);
    alone.write(
      0,
      Float32Array.from({ length: 12 }, (_, i) => i),
      { first: 0, count: 1, position: 3 },
    );
    const held = [...alone.seat.slab.seats(0, { first: 0, count: 1 }).values];
    room.expect(3);
    const all = [alone, ...caches(room, [64, 64])];
    alone.reserve(10);
    expect(new Set(all.map(({ seat }) => seat.slab)).size).toBe(1);
    const { slab, index } = alone.seat;
    expect(slab.seatCount).toBe(4);
    expect([...slab.seats(0, { first: index, count: 1 }).values]).toEqual(held);
  });

  test('a seat that another sequence has left holds zeros behind what the next sequence writes', () => {
    const room = new CacheRoom(SHAPE);
    const [kept, left] = caches(room, [64, 64]);
    left.write(0, new Float32Array(64 * 12).fill(NaN), { first: 0, count: 64, position: 0 });
    left.free();
    const [next] = caches(room, [3]);
    next.write(0, new Float32Array(3 * 12), { first: 0, count: 3, position: 0 });
    expect(next.seat).toEqual({ slab: kept.seat.slab, index: 1 });
    const { keys, values } = next.seat.slab.seats(0, { first: 1, count: 1 });
    expect([...keys, ...values].every((value) => value === 0)).toBe(true);
  });

  test('memory that other sequences have left holds zeros wherever the next cache holds nothing', () => {
    const room = new CacheRoom(SHAPE);
    const rows = Float32Array.from({ length: 12 }, (_, i) => i + 1);
    const [before] = caches(room, [256]);
    before.write(0, new Float32Array(256 * 12).fill(NaN), { first: 0, count: 256, position: 0 });
    const { buffer } = before.seat.slab.memory;
    before.free();
    room.expect(1);
    const [next] = caches(room, [1]);
    next.write(0, rows, { first: 0, count: 1, position: 0 });
    const grown = new KvCache(room);
    grown.fork(next, 1);
    grown.reserve(65);
    grown.write(0, new Float32Array(12), { first: 0, count: 1, position: 64 });
    const { keys, values } = grown.seat.slab.seats(0, { first: grown.seat.index, count: 1 });
    expect([next.seat.slab.memory.buffer, grown.seat.slab.memory.buffer]).toEqual([buffer, buffer]);
    const held = [...keys, ...values].filter((value) => value !== 0);
    expect(held).toEqual([...rows.subarray(4)]);
  });

  test('sequences whose neighbours have grown keep their seats as long as half of all memory is in use', () => {
    const room = new CacheRoom(SHAPE);
    const all = caches(room, [64, 64, 64, 64, 64, 64, 64, 64]);
    for (const grown of all.slice(0, 5)) grown.reserve(128);
    const { slab } = all[7].seat;
    room.tidy();
    expect(all.slice(5).map(({ seat }) => seat)).toEqual([5, 6, 7].map((index) => ({ slab, index })));
  });

  test('a slab that most sequences have left is given back, and the others move together with their contents', () => {
    const room = new CacheRoom(SHAPE);
    const all = caches(room, [64, 64, 64, 64, 64, 64, 64]);
    all[5].write(
      0,
      Float32Array.from({ length: 12 }, (_, i) => i),
      { first: 0, count: 1, position: 0 },
    );
    const old = all[5].seat.slab;
    for (const gone of [0, 1, 3]) all[gone].free();
    room.tidy();
    expect(all[5].seat).toEqual({ slab: old, index: 5 });
    all[4].free();
    room.tidy();
    const stayed = [all[2], all[5], all[6]];
    expect(stayed.map(({ seat }) => seat.index)).toEqual([0, 1, 2]);
    expect(stayed.every(({ seat }) => seat.slab === all[2].seat.slab && seat.slab !== old)).toBe(true);
    expect([...all[5].seat.slab.seats(0, { first: 1, count: 1 }).keys.subarray(0, 2)]).toEqual([4, 5]);
    expect(old.caches).toEqual([]);
  });
});
