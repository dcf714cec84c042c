// Where the caches lie: ranges of long arrays. The first free range that is long enough is taken, so that the memory of an ended
// sequence is soon used for another. In new memory a prompt would take half as long again: the policy is in memory/reuse.ts.

import { assert } from '../../model/errors.ts';

/** The elements [start, end) of a segment. */
interface Range {
  readonly start: number;
  readonly end: number;
}

interface Segment {
  readonly memory: Float32Array;
  /** The free ranges in order; no two of them touch. */
  free: Range[];
}

const lengthOf = (ranges: readonly Range[]): number => ranges.reduce((sum, { start, end }) => sum + end - start, 0);

export class CacheMemory {
  readonly #segmentLength: number;
  readonly #segments: Segment[] = [];

  /** New memory is allocated in segments of at least `segmentLength` elements; pages that nobody has written to cost nothing. */
  constructor(segmentLength: number) {
    this.#segmentLength = segmentLength;
  }

  /** The number of elements that are held, in use or free. */
  get length(): number {
    return this.#segments.reduce((sum, { memory }) => sum + memory.length, 0);
  }

  /** Returns a range of `length` elements with unknown content. */
  take(length: number): Float32Array {
    const fits = ({ start, end }: Range): boolean => end - start >= length;
    let segment = this.#segments.find(({ free }) => free.some(fits));
    if (segment === undefined) {
      const memory = new Float32Array(Math.max(length, this.#segmentLength));
      segment = { memory, free: [{ start: 0, end: memory.length }] };
      this.#segments.push(segment);
    }
    const at = segment.free.findIndex(fits);
    const { start, end } = segment.free[at];
    segment.free.splice(at, 1, ...(end - start > length ? [{ start: start + length, end }] : []));
    return segment.memory.subarray(start, start + length);
  }

  /**
   * Takes back a range of `take`. While more is free than in use, it drops the newest segment that is free, but never the first.
   */
  give(range: Float32Array): void {
    const segment = this.#segments.find(({ memory }) => memory.buffer === range.buffer);
    assert(segment !== undefined, 'the range is not of this memory');
    const start = range.byteOffset / Float32Array.BYTES_PER_ELEMENT;
    const merged: Range[] = [];
    for (const next of [...segment.free, { start, end: start + range.length }].sort((a, b) => a.start - b.start)) {
      const last = merged.at(-1);
      assert(last === undefined || last.end <= next.start, 'the range is free already');
      if (last?.end === next.start) merged.splice(-1, 1, { start: last.start, end: next.end });
      else merged.push(next);
    }
    segment.free = merged;
    const isIdle = ({ memory, free }: Segment): boolean => lengthOf(free) === memory.length;
    while (this.#segments.length > 1 && 2 * lengthOf(this.#segments.flatMap(({ free }) => free)) > this.length) {
      const idle = this.#segments.findLastIndex(isIdle);
      if (idle < 1) break;
      this.#segments.splice(idle, 1);
    }
  }
}
