// Keys and values of one sequence in the blocks of one stage. Room is taken in steps: attention costs as much as the
// capacity, not the length, so a short sequence has a small cache. Letters: D width, H heads, W = D/H, P capacity.

import { CACHE_STEP } from '../model/serving.ts';
import { assert } from '../model/errors.ts';

interface BlockCache {
  /** (H, P, W) */
  keys: Float32Array;
  /** (H, W, P) */
  values: Float32Array;
}

export interface CacheShape {
  readonly D: number;
  readonly H: number;
  readonly blockCount: number;
}

export class KvCache {
  readonly #shape: CacheShape;
  #blocks: BlockCache[];
  #capacity = 0;

  constructor(shape: CacheShape) {
    this.#shape = shape;
    this.#blocks = Array.from({ length: shape.blockCount }, () => ({
      keys: new Float32Array(0),
      values: new Float32Array(0),
    }));
  }

  /** P, a multiple of CACHE_STEP. */
  get capacity(): number {
    return this.#capacity;
  }

  /** keys (H, P, W) and values (H, W, P) of a block, to be read until the next `reserve`. */
  block(index: number): Readonly<BlockCache> {
    return this.#blocks[index];
  }

  /** Makes room for `length` positions and keeps what is there. */
  reserve(length: number): void {
    if (length > this.#capacity) this.#copyOf(this, { length: this.#capacity, room: length });
  }

  /** Takes over the first `length` positions of another cache. */
  fork(other: KvCache, length: number): void {
    assert(length <= other.#capacity, `a cache of ${other.#capacity} positions has none of the first ${length}`);
    this.#copyOf(other, { length, room: length });
  }

  #copyOf(other: KvCache, { length, room }: { length: number; room: number }): void {
    const { D, H } = this.#shape;
    const [W, from, to] = [D / H, other.#capacity, Math.ceil(room / CACHE_STEP) * CACHE_STEP];
    this.#blocks = other.#blocks.map((old) => {
      const grown = { keys: new Float32Array(D * to), values: new Float32Array(D * to) };
      for (let row = 0; row < D; row++) {
        grown.values.set(old.values.subarray(row * from, row * from + length), row * to);
      }
      for (let head = 0; head < H; head++) {
        grown.keys.set(old.keys.subarray(head * from * W, (head * from + length) * W), head * to * W);
      }
      return grown;
    });
    this.#capacity = to;
  }

  /** Stores keys and values out of qkv (M, 3D), its rows from `first` on, at `count` positions from `position` on. */
  write(
    index: number,
    qkv: Float32Array,
    { first, count, position }: { first: number; count: number; position: number },
  ): void {
    const { D, H } = this.#shape;
    const [W, P] = [D / H, this.#capacity];
    const { keys, values } = this.#blocks[index];
    for (let row = 0; row < count; row++) {
      const from = (first + row) * 3 * D;
      const at = position + row;
      for (let head = 0; head < H; head++) {
        const start = from + D + head * W;
        for (let i = 0; i < W; i++) keys[(head * P + at) * W + i] = qkv[start + i];
      }
      for (let i = 0; i < D; i++) values[i * P + at] = qkv[from + 2 * D + i];
    }
  }
}
