// The one policy of memory on the stages' threads: what has been written to once is used again, and nothing is allocated in a loop.
// The first write to each page of new memory is a page fault, on a virtual machine perhaps one of the host's too; and V8's collector
// goes over a thread's whole heap each time that so many megabytes of arrays have been dropped. Whoever keeps memory lets go of it
// with its lease, and keeps no more than was needed at once. Whole arrays come from an ArrayPool, and so do a snapshot's copies;
// arrays that each step writes over from a Scratch; ranges that sequences take and leave from a CacheMemory; and what the optimizer
// updates stays where it is, in the memory of a FusedProgram.

import { assert } from '../../model/errors.ts';

/** Whole arrays, by their length: every step takes those that the step before has given back. */
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

/** Arrays that a step writes over and that the next step writes over again, by name. */
export class Scratch {
  readonly #arrays = new Map<string, Float32Array>();

  /** `length` elements of unknown content: the beginning of one array a name, which grows to the longest that was asked for. */
  take(name: string, length: number): Float32Array {
    let array = this.#arrays.get(name);
    if (array === undefined || array.length < length) {
      array = new Float32Array(length);
      this.#arrays.set(name, array);
    }
    return array.subarray(0, length);
  }

  /** Lets go of all. */
  clear(): void {
    this.#arrays.clear();
  }
}
