// The keys and values of the sequences in the blocks of one stage. A cache grows in steps, as attention costs as much as its
// capacity and not its length: a short sequence has a small cache. Caches of one capacity are seats of a slab, and sequences in
// seats beside each other attend in one product. Letters: D width, H heads, W = D/H, P capacity, S seats.

import { capacityFor } from '../../model/programs/serving.ts';
import { assert } from '../../model/errors.ts';
import { CacheMemory } from '../memory/cache-memory.ts';

/** The seats of a slab, at the most. */
const SEATS_MAX = 8;

/** Memory is allocated for this many positions of one sequence at a time. */
const SEGMENT_POSITIONS = 1024;

/** The values of this many rows are transposed together: they fill a line of the processor's cache. */
const WRITE_ROWS = 16;

export interface CacheShape {
  readonly D: number;
  readonly H: number;
  readonly blockCount: number;
}

interface SlabBlock {
  /** (S, H, P, W) */
  readonly keys: Float32Array;
  /** (S, H, W, P) */
  readonly values: Float32Array;
}

export class CacheSlab {
  /** P, a multiple of CACHE_STEP. */
  readonly capacity: number;
  readonly seatCount: number;
  /** The seats' keys and values in all blocks, of unknown content at first. */
  readonly memory: Float32Array;
  readonly #blocks: readonly SlabBlock[];
  readonly #seatLength: number;
  readonly #taken = new Map<number, KvCache>();
  readonly #used = new Set<number>();

  constructor(
    { D, blockCount }: CacheShape,
    { capacity, seats, memory }: { capacity: number; seats: number; memory: CacheMemory },
  ) {
    this.capacity = capacity;
    this.seatCount = seats;
    this.#seatLength = D * capacity;
    const length = seats * this.#seatLength;
    this.memory = memory.take(2 * blockCount * length);
    const slice = (i: number): Float32Array => this.memory.subarray(i * length, (i + 1) * length);
    this.#blocks = Array.from({ length: blockCount }, (_, i) => ({ keys: slice(2 * i), values: slice(2 * i + 1) }));
  }

  get caches(): readonly KvCache[] {
    return [...this.#taken.values()];
  }

  /** The positions of the seats that are taken, and of the seats that were ever taken: their memory stays in use. */
  get positions(): { readonly taken: number; readonly held: number } {
    return { taken: this.#taken.size * this.capacity, held: this.#used.size * this.capacity };
  }

  /** Takes the first free seat and returns its index; -1 when there is none. */
  take(cache: KvCache): number {
    const seat = Array.from({ length: this.seatCount }, (_, i) => i).findIndex((i) => !this.#taken.has(i));
    if (seat === -1) return -1;
    this.#taken.set(seat, cache);
    this.#used.add(seat);
    return seat;
  }

  leave(seat: number): void {
    this.#taken.delete(seat);
  }

  /** Returns views of the keys (N, H, P, W) and values (N, H, W, P) of N seats beside each other, in one block. */
  seats(block: number, { first, count }: { first: number; count: number }): SlabBlock {
    const [from, to] = [first * this.#seatLength, (first + count) * this.#seatLength];
    const { keys, values } = this.#blocks[block];
    return { keys: keys.subarray(from, to), values: values.subarray(from, to) };
  }
}

interface Seat {
  readonly slab: CacheSlab;
  readonly index: number;
}

/** All slabs of a stage. */
export class CacheRoom {
  readonly shape: CacheShape;
  #slabs: CacheSlab[] = [];
  readonly #memory: CacheMemory;
  #seatCount = SEATS_MAX;

  constructor(shape: CacheShape) {
    this.shape = shape;
    this.#memory = new CacheMemory(2 * shape.blockCount * shape.D * SEGMENT_POSITIONS);
  }

  /** Sizes the slabs that are made from now on for this many sequences: a lone sequence does not pay for seats beside its own. */
  expect(sequences: number): void {
    this.#seatCount = Math.min(SEATS_MAX, 2 ** Math.ceil(Math.log2(sequences)));
  }

  /** Whether the seat's slab has fewer seats than a slab that is made now. */
  isNarrow({ slab }: Seat): boolean {
    return slab.seatCount < this.#seatCount;
  }

  take(cache: KvCache, capacity: number): Seat {
    for (const slab of this.#slabs) {
      const fits = slab.capacity === capacity && slab.seatCount >= this.#seatCount;
      const index = fits ? slab.take(cache) : -1;
      if (index !== -1) return { slab, index };
    }
    const slab = new CacheSlab(this.shape, { capacity, seats: this.#seatCount, memory: this.#memory });
    this.#slabs.push(slab);
    return { slab, index: slab.take(cache) };
  }

  /** Frees a seat, and gives the slab's memory back when no seat of it is taken. */
  leave({ slab, index }: Seat): void {
    slab.leave(index);
    if (slab.caches.length > 0) return;
    this.#slabs = this.#slabs.filter((other) => other !== slab);
    this.#memory.give(slab.memory);
  }

  /**
   * When more than half of the used memory is idle: moves the sequences out of slabs that are mostly free, which frees the slabs.
   */
  tidy(): void {
    const isMostlyLeft = (slabs: readonly CacheSlab[]): boolean =>
      slabs.reduce((sum, { positions: { taken, held } }) => sum + held - 2 * taken, 0) > 0;
    if (!isMostlyLeft(this.#slabs)) return;
    const left = this.#slabs.filter((slab) => isMostlyLeft([slab]));
    this.#slabs = this.#slabs.filter((slab) => !left.includes(slab));
    for (const cache of left.flatMap(({ caches }) => caches)) cache.move();
  }
}

/** The cache of one sequence. */
export class KvCache {
  readonly #room: CacheRoom;
  #seat: Seat | null = null;

  constructor(room: CacheRoom) {
    this.#room = room;
  }

  /** The cache's seat, until the next call that moves the cache. */
  get seat(): Seat {
    assert(this.#seat !== null, 'a cache has no seat before it has room');
    return this.#seat;
  }

  get #capacity(): number {
    return this.#seat?.slab.capacity ?? 0;
  }

  /**
   * Makes room for `length` positions, beside the other sequences of the step, and keeps what is there. The caller writes the new
   * positions up to `length` before anything attends.
   */
  reserve(length: number): void {
    const isNarrow = this.#seat !== null && this.#room.isNarrow(this.#seat);
    if (length <= this.#capacity && !isNarrow) return;
    this.#copyOf(this, { length: this.#capacity, room: Math.max(length, this.#capacity) });
  }

  /** Takes over the first `length` positions of another cache. */
  fork(other: KvCache, length: number): void {
    assert(length <= other.#capacity, `a cache of ${other.#capacity} positions has none of the first ${length}`);
    this.#copyOf(other, { length, room: length });
  }

  /** Moves the cache to another seat: of another slab, when the room has given this one up. */
  move(): void {
    this.#copyOf(this, { length: this.#capacity, room: this.#capacity });
  }

  free(): void {
    if (this.#seat !== null) this.#room.leave(this.#seat);
    this.#seat = null;
  }

  /** Takes a new seat: it gets the first `length` positions of `other`, unknown content up to `room`, and zeros behind. */
  #copyOf(other: KvCache, { length, room }: { length: number; room: number }): void {
    const { D, H, blockCount } = this.#room.shape;
    const seat = this.#room.take(this, capacityFor(room));
    const [W, from, to] = [D / H, other.#capacity, seat.slab.capacity];
    for (let block = 0; block < blockCount; block++) {
      const old = length > 0 ? other.#block(block) : null;
      const { keys, values } = seat.slab.seats(block, { first: seat.index, count: 1 });
      for (let row = 0; row < D; row++) {
        if (old !== null) values.set(old.values.subarray(row * from, row * from + length), row * to);
        // A masked position counts as zero times its values, which must be numbers.
        values.fill(0, row * to + room, (row + 1) * to);
      }
      for (let head = 0; head < H; head++) {
        if (old !== null) keys.set(old.keys.subarray(head * from * W, (head * from + length) * W), head * to * W);
        keys.fill(0, (head * to + room) * W, (head + 1) * to * W);
      }
    }
    this.free();
    this.#seat = seat;
  }

  #block(index: number): SlabBlock {
    return this.seat.slab.seats(index, { first: this.seat.index, count: 1 });
  }

  /** Stores the keys and values of `count` rows of qkv (M, 3D), from row `first` on, at the positions from `position` on. */
  write(
    index: number,
    qkv: Float32Array,
    { first, count, position }: { first: number; count: number; position: number },
  ): void {
    const { D, H } = this.#room.shape;
    const [W, P] = [D / H, this.#capacity];
    const { keys, values } = this.#block(index);
    for (let row = 0; row < count; row++) {
      for (let head = 0; head < H; head++) {
        const from = (first + row) * 3 * D + D + head * W;
        const to = (head * P + position + row) * W;
        for (let i = 0; i < W; i++) keys[to + i] = qkv[from + i];
      }
    }
    // A channel's values lie side by side. Some rows are copied at a time, so that what is read and written stays in the cache.
    for (let start = 0; start < count; start += WRITE_ROWS) {
      const end = Math.min(count, start + WRITE_ROWS);
      for (let channel = 0; channel < D; channel++) {
        const to = channel * P + position;
        let [row, from] = [start, (first + start) * 3 * D + 2 * D + channel];
        // Four rows at once take a third less time.
        for (; row + 4 <= end; row += 4, from += 12 * D) {
          values[to + row] = qkv[from];
          values[to + row + 1] = qkv[from + 3 * D];
          values[to + row + 2] = qkv[from + 6 * D];
          values[to + row + 3] = qkv[from + 9 * D];
        }
        for (; row < end; row++, from += 3 * D) values[to + row] = qkv[from];
      }
    }
  }
}
