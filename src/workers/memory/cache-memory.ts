// Where the caches lie: ranges of long arrays. A sequence takes the first free range that is long enough, so that what one
// sequence has left is soon another's. In new memory a prompt would take half as long again: the policy is in reuse.ts.

import { assert } from '../../model/errors.ts';

/** Elements [start, end). */
interface Range {
  readonly start: number;
  readonly end: number;
}

interface Segment {
  readonly memory: Float32Array;
  /** In order; no two of them touch. */
  free: Range[];
}

const lengthOf = (ranges: readonly Range[]): number => ranges.reduce((sum, { start, end }) => sum + end - start, 0);

export class CacheMemory {
  readonly #segmentLength: number;
  readonly #segments: Segment[] = [];

  /** New memory is asked for so many elements at a time, at the least; what nobody has written to costs nothing. */
  constructor(segmentLength: number) {
    this.#segmentLength = segmentLength;
  }

  /** Elements that are held, in use or not. */
  get length(): number {
    return this.#segments.reduce((sum, { memory }) => sum + memory.length, 0);
  }

  /** `length` elements of unknown content. */
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

  /** Takes back what `take` gave; lets go of the newest segments that are free as long as more is free than in use. */
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
