// A training stage's arrays as they were at one step, while later steps go on. Nothing is copied when the snapshot is taken. A
// chunk that has not been read yet is copied only when the optimizer is about to overwrite it, and copies take `keptBytesMax`
// bytes at the most. What does not fit has to be read first: the optimizer waits for the reader, so that memory stays bounded.
// Copies reuse the arrays of earlier copies that have been read, as the policy in memory/reuse.ts wants it.

import { DTYPE_BYTES } from '../../model/tensors.ts';
import type { ArrayPool } from '../memory/reuse.ts';
import type { ChunkAddress } from '../store/messages.ts';

const keyOf = ({ tensor, part, start }: ChunkAddress): string => `${part} ${start} ${tensor}`;

export class Snapshot {
  readonly #keptBytesMax: number;
  readonly #arrays: ArrayPool;
  readonly #kept = new Map<string, Float32Array>();
  readonly #read = new Set<string>();
  #keptBytes = 0;

  /** Copies are arrays of the pool `arrays`; each goes back to the pool when it is read. */
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

  /** Makes the chunk safe to overwrite. Returns false when it has not been read and there is no room to set it aside. */
  release(chunk: ChunkAddress, live: Float32Array): boolean {
    const key = keyOf(chunk);
    if (this.#read.has(key) || this.#kept.has(key)) return true;
    const sizeBytes = chunk.count * DTYPE_BYTES.float32;
    if (this.#keptBytes + sizeBytes > this.#keptBytesMax) return false;
    const copy = this.#arrays.take(chunk.count);
    copy.set(live.subarray(chunk.start, chunk.start + chunk.count));
    this.#kept.set(key, copy);
    this.#keptBytes += sizeBytes;
    return true;
  }
}
