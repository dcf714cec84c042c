// Arrays that a step writes over and that the next step writes over again, by name. New ones for every run would cost page faults,
// and tell the collector that so much memory has gone that it goes over all of a thread's heap several times a second.

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
