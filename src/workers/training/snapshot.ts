// A training stage's arrays as they were at one step, while later steps go on. Nothing is copied when the snapshot is taken:
// a chunk that has not been read yet is set aside only when the optimizer is about to overwrite it, and only as many bytes
// as there is room for. What does not fit has to be read first, so the optimizer waits for the reader and not memory for both.
// Copies go into arrays of earlier copies that have been read, as the policy in memory/reuse.ts wants it.

import type { ArrayPool } from '../memory/reuse.ts';
import type { ChunkAddress } from '../store/messages.ts';

const keyOf = ({ tensor, part, start }: ChunkAddress): string => `${part} ${start} ${tensor}`;

export class Snapshot {
  readonly #keptBytesMax: number;
  readonly #arrays: ArrayPool;
  readonly #kept = new Map<string, Float32Array>();
  readonly #read = new Set<string>();
  #keptBytes = 0;

  /** Copies are arrays of the pool; they go back to it as they are read. */
  constructor({ keptBytesMax, arrays }: { readonly keptBytesMax: number; readonly arrays: ArrayPool }) {
    this.#keptBytesMax = keptBytesMax;
    this.#arrays = arrays;
  }

  /** Copies the chunk as it was to `into` (count). `live` is the tensor's whole array as it is now. */
  read(chunk: ChunkAddress, { live, into }: { readonly live: Float32Array; readonly into: Float32Array }): void {
    const key = keyOf(chunk);
    const kept = this.#kept.get(key);
    this.#read.add(key);
    into.set(kept ?? live.subarray(chunk.start, chunk.start + chunk.count));
    if (kept === undefined) return;
    this.#kept.delete(key);
    this.#keptBytes -= kept.byteLength;
    this.#arrays.give(kept);
  }

  /** Makes the chunk safe to overwrite. False when it has not been read and there is no room to set it aside. */
  release(chunk: ChunkAddress, live: Float32Array): boolean {
    const key = keyOf(chunk);
    if (this.#read.has(key) || this.#kept.has(key)) return true;
    const sizeBytes = chunk.count * Float32Array.BYTES_PER_ELEMENT;
    if (this.#keptBytes + sizeBytes > this.#keptBytesMax) return false;
    const copy = this.#arrays.take(chunk.count);
    copy.set(live.subarray(chunk.start, chunk.start + chunk.count));
    this.#kept.set(key, copy);
    this.#keptBytes += sizeBytes;
    return true;
  }
}
