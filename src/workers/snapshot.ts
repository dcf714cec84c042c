// A training stage's arrays as they were at one step, while later steps go on. Nothing is copied when the snapshot is taken:
// a chunk that has not been read yet is set aside only when the optimizer is about to overwrite it, and only as many bytes
// as there is room for. What does not fit has to be read first, so the optimizer waits for the reader and not memory for both.
// Copies go into arrays of earlier ones that came back: the first write to new memory costs several times what a copy does.

import type { ArrayPool } from './array-pool.ts';
import type { ChunkAddress } from './messages.ts';

const keyOf = ({ tensor, part, start }: ChunkAddress): string => `${part} ${start} ${tensor}`;

export class Snapshot {
  readonly #keptBytesMax: number;
  readonly #arrays: ArrayPool;
  readonly #kept = new Map<string, Float32Array>();
  readonly #taken = new Set<string>();
  #keptBytes = 0;

  /** Copies are arrays of the pool; they come back to it from whoever has taken them. */
  constructor({ keptBytesMax, arrays }: { readonly keptBytesMax: number; readonly arrays: ArrayPool }) {
    this.#keptBytesMax = keptBytesMax;
    this.#arrays = arrays;
  }

  /** The chunk as it was, in an array of its own that the caller owns. `live` is the tensor's whole array as it is now. */
  take(chunk: ChunkAddress, live: Float32Array): Float32Array {
    const key = keyOf(chunk);
    const kept = this.#kept.get(key);
    this.#taken.add(key);
    if (kept === undefined) return this.#copy(chunk, live);
    this.#kept.delete(key);
    this.#keptBytes -= kept.byteLength;
    return kept;
  }

  /** Makes the chunk safe to overwrite. False when it has not been taken and there is no room to set it aside. */
  release(chunk: ChunkAddress, live: Float32Array): boolean {
    const key = keyOf(chunk);
    if (this.#taken.has(key) || this.#kept.has(key)) return true;
    const sizeBytes = chunk.count * Float32Array.BYTES_PER_ELEMENT;
    if (this.#keptBytes + sizeBytes > this.#keptBytesMax) return false;
    this.#kept.set(key, this.#copy(chunk, live));
    this.#keptBytes += sizeBytes;
    return true;
  }

  #copy({ start, count }: ChunkAddress, live: Float32Array): Float32Array {
    const copy = this.#arrays.take(count);
    copy.set(live.subarray(start, start + count));
    return copy;
  }
}
