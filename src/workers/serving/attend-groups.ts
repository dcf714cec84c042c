// Which rows of a step attend in one product: the rows of sequences whose caches are seats beside each other. Bits do not depend
// on the grouping. Where a sequence has fewer rows than another of its group, copies of its last row, its twins, fill it up.
// Letters: M rows of the step, N sequences of a group, R query rows of each, P positions that they look at.

import { ATTEND_ROWS_MAX, ATTEND_ROWS_MIN, ATTEND_WIDE_ROWS_MAX, capacityFor } from '../../model/programs/serving.ts';
import type { Tensor } from '../engines/engine.ts';
import type { CacheSlab, KvCache } from './kv-cache.ts';

/** Consecutive rows of the step, all of one sequence. */
export interface RowSpan {
  readonly cache: KvCache;
  readonly first: number;
  readonly count: number;
  /** The position of the first row. */
  readonly position: number;
}

/** Sequences whose caches are side by side attend together, the same in every block of a step. */
export interface AttendGroup {
  readonly slab: CacheSlab;
  readonly firstSeat: number;
  /** The rows to attend, a span for each seat. */
  readonly spans: readonly RowSpan[];
  /** (N, 1, R, P): R is the length of the longest span, and at least two. P is the capacity, or less for a wide group. */
  readonly mask: Tensor;
}

/** Whether the group is one long piece of a prompt, which wideAttendProgram takes. */
export const isWide = ({ mask: { dims } }: AttendGroup): boolean => dims[2] > ATTEND_ROWS_MAX;

/**
 * Splits spans into groups, each of which one product takes: up to ATTEND_ROWS_MAX rows of each of its sequences. With `wide` a
 * long span is cut into wide pieces, each a group of its own, and a last piece that is not wide. Wide groups come first.
 */
export function attendGroups(spans: readonly RowSpan[], { wide }: { wide: boolean }): AttendGroup[] {
  const pieces = spans.flatMap((span) => [...piecesOf(span, { wide })]);
  const slabs = new Map<CacheSlab, RowSpan[]>();
  for (const piece of pieces) {
    const { slab } = piece.cache.seat;
    const beside = slabs.get(slab);
    if (beside === undefined) slabs.set(slab, [piece]);
    else beside.push(piece);
  }
  const groups = [...slabs].flatMap(([slab, inSlab]) => {
    const runs: RowSpan[][] = [];
    for (const span of inSlab.sort((a, b) => a.cache.seat.index - b.cache.seat.index)) {
      const last = runs.at(-1)?.at(-1);
      const beside = last !== undefined && span.cache.seat.index === last.cache.seat.index + 1;
      // Beside a full piece of a prompt, every other sequence would be filled up to sixteen rows.
      if (beside && Math.max(span.count, last.count) < ATTEND_ROWS_MAX) runs.at(-1)!.push(span);
      else runs.push([span]);
    }
    return runs.map((run) => ({
      slab,
      firstSeat: run[0].cache.seat.index,
      spans: run,
      mask: attentionMask(run, positionsOf(run, slab)),
    }));
  });
  return [...groups.filter(isWide), ...groups.filter((group) => !isWide(group))];
}

/**
 * The number of positions that a group looks at: all of the cache, or the first ones where a wide piece needs at most half of it.
 */
function positionsOf(spans: readonly RowSpan[], slab: CacheSlab): number {
  const [{ position, count }] = spans;
  const seen = capacityFor(position + count);
  return count > ATTEND_ROWS_MAX && 2 * seen <= slab.capacity ? seen : slab.capacity;
}

function* piecesOf({ cache, first, count, position }: RowSpan, { wide }: { wide: boolean }): Generator<RowSpan> {
  for (let done = 0; done < count;) {
    const left = count - done;
    const isLong = wide && left > ATTEND_ROWS_MAX;
    const rows = isLong ? Math.min(ATTEND_WIDE_ROWS_MAX, left - ATTEND_ROWS_MAX) : Math.min(ATTEND_ROWS_MAX, left);
    yield { cache, first: first + done, count: rows, position: position + done };
    done += rows;
  }
}

/** The number of the groups' query rows, twins included. */
export const rowsOf = (groups: readonly AttendGroup[]): number =>
  groups.reduce((sum, { mask: { dims } }) => sum + dims[0] * dims[2], 0);

/** Rows of a step that go through a block together. */
export interface Passage {
  /** The rows in ascending order. */
  readonly rows: readonly number[];
  /** The groups that these rows attend in. */
  readonly groups: readonly AttendGroup[];
  /** (M): the place of each row among the query rows of all groups, one group after the other. */
  readonly attended: Tensor;
}

export function passage(rows: readonly number[], groups: readonly AttendGroup[]): Passage {
  const wanted = new Set(rows);
  const rowsIn = ({ first, count }: RowSpan): number[] => Array.from({ length: count }, (_, i) => first + i);
  const kept = groups.filter(({ spans }) => spans.some((span) => rowsIn(span).some((row) => wanted.has(row))));
  const places = new Map<number, number>();
  let before = 0;
  for (const { spans, mask } of kept) {
    for (const span of spans) {
      for (const [i, row] of rowsIn(span).entries()) places.set(row, before + i);
      before += mask.dims[2];
    }
  }
  const attended = { data: BigInt64Array.from(rows, (row) => BigInt(places.get(row)!)), dims: [rows.length] };
  return { rows, groups: kept, attended };
}

/** Returns (N, R): the row of the step that each query row of a lone group is. A missing row is a twin of the last one. */
export function queryRows({ spans, mask: { dims } }: AttendGroup): Tensor {
  const [N, , R] = dims;
  const data = BigInt64Array.from(
    spans.flatMap(({ first, count }) =>
      Array.from({ length: R }, (_, row) => BigInt(first + Math.min(row, count - 1))),
    ),
  );
  return { data, dims: [N, R] };
}

/**
 * Returns the rows of a lone group without twins, `fresh` (U), and their places in the group's caches: `keyPlaces` (U, H, 3) are
 * sequence, head and position, and `valuePlaces` (U, H, W, 4) are sequence, head, channel and position.
 */
export function cachePlaces(
  { spans }: AttendGroup,
  { H, W }: { H: number; W: number },
): Readonly<Record<'fresh' | 'keyPlaces' | 'valuePlaces', Tensor>> {
  const rows = spans.flatMap(({ first, count, position }, sequence) =>
    Array.from({ length: count }, (_, i) => ({ row: first + i, sequence, position: position + i })),
  );
  const U = rows.length;
  const [keys, values] = [new BigInt64Array(U * H * 3), new BigInt64Array(U * H * W * 4)];
  // Only the low halves of these small numbers are written: that is many times as fast as BigInts.
  const [keyWords, valueWords] = [new Int32Array(keys.buffer), new Int32Array(values.buffer)];
  for (const { row, sequence, position } of rows) {
    for (let head = 0; head < H; head++) {
      const key = 6 * (row * H + head);
      keyWords[key] = sequence;
      keyWords[key + 2] = head;
      keyWords[key + 4] = position;
      for (let channel = 0; channel < W; channel++) {
        const value = 8 * ((row * H + head) * W + channel);
        valueWords[value] = sequence;
        valueWords[value + 2] = head;
        valueWords[value + 4] = channel;
        valueWords[value + 6] = position;
      }
    }
  }
  return {
    fresh: { data: BigInt64Array.from(rows, (_, row) => BigInt(row)), dims: [U] },
    keyPlaces: { data: keys, dims: [U, H, 3] },
    valuePlaces: { data: values, dims: [U, H, W, 4] },
  };
}

/** Returns (N, 1, R, P): each row sees the positions up to its own, and a twin sees what the last row of its span sees. */
function attentionMask(spans: readonly RowSpan[], P: number): Tensor {
  const R = Math.max(ATTEND_ROWS_MIN, ...spans.map(({ count }) => count));
  const data = new Float32Array(spans.length * R * P);
  for (const [i, { count, position }] of spans.entries()) {
    for (let row = 0; row < R; row++) {
      const at = (i * R + row) * P;
      data.fill(-Infinity, at + position + Math.min(row, count - 1) + 1, at + P);
    }
  }
  return { data, dims: [spans.length, 1, R, P] };
}
