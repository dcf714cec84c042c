// Arrays that are used again. Every step needs arrays of the same lengths; taking the ones that the step before gave back
// keeps the allocator, the collector and above all the kernel's page faults out of the training loop.

import { assert } from '../../model/errors.ts';

export class ArrayPool {
  readonly #free = new Map<number, Float32Array[]>();

  /** An array of `length` elements with unknown content; the caller owns it. */
  take(length: number): Float32Array {
    return this.#free.get(length)?.pop() ?? new Float32Array(length);
  }

  /** Takes an array over: the caller must not touch it again. It is all of its buffer, so it may be transferred later. */
  give(array: Float32Array): void {
    assert(array.byteLength === array.buffer.byteLength && array.length > 0, 'a pooled array is a whole buffer');
    const same = this.#free.get(array.length);
    if (same === undefined) this.#free.set(array.length, [array]);
    else same.push(array);
  }

  /** Lets go of all that is free. */
  clear(): void {
    this.#free.clear();
  }
}
