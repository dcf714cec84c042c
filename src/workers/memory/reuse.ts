// The one policy of memory on the stages' threads: memory that has been written to once is used again, and no loop allocates. The
// first write to each page of new memory is a page fault, on a virtual machine perhaps one of the host's too. V8's garbage
// collector goes over a thread's whole heap each time that enough megabytes of arrays have been dropped. Each holder of memory
// keeps no more than was needed at once, and drops it with its lease. There are four of them. An ArrayPool lends whole arrays, a
// snapshot's copies among them. A Scratch has the arrays that each step overwrites. A CacheMemory lends ranges to sequences,
// which come and go. A FusedProgram holds what the optimizer updates in place.

import { assert } from '../../model/errors.ts';

/** Lends whole arrays by their length: every step takes those that the step before has given back. */
export class ArrayPool {
  readonly #free = new Map<number, Float32Array[]>();

  /** Returns an array of `length` elements with unknown content; the caller owns it. */
  take(length: number): Float32Array {
    return this.#free.get(length)?.pop() ?? new Float32Array(length);
  }

  /**
   * Takes an array over: the caller must not touch it again. The array fills its whole buffer, so it can be transferred later.
   */
  give(array: Float32Array): void {
    assert(array.byteLength === array.buffer.byteLength && array.length > 0, 'a pooled array is a whole buffer');
    const same = this.#free.get(array.length);
    if (same === undefined) this.#free.set(array.length, [array]);
    else same.push(array);
  }

  /** Drops all free arrays. */
  clear(): void {
    this.#free.clear();
  }
}

/** Holds, by name, the arrays that every step overwrites. */
export class Scratch {
  readonly #arrays = new Map<string, Float32Array>();

  /**
   * Returns `length` elements of unknown content: the beginning of the name's one array, which is as long as the longest request.
   */
  take(name: string, length: number): Float32Array {
    let array = this.#arrays.get(name);
    if (array === undefined || array.length < length) {
      array = new Float32Array(length);
      this.#arrays.set(name, array);
    }
    return array.subarray(0, length);
  }

  /** Drops all arrays. */
  clear(): void {
    this.#arrays.clear();
  }
}
