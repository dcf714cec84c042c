// Random numbers that a seed and a name repeat. SHA-256 makes the state, and xorshift128 (Marsaglia, 2003) the numbers.

import { createHash } from 'node:crypto';

export class Random {
  readonly #state: Uint32Array;

  constructor(seed: number, name: string) {
    const digest = createHash('sha256').update(`${seed}/${name}`).digest();
    this.#state = Uint32Array.from({ length: 4 }, (_, i) => digest.readUInt32LE(4 * i));
  }

  #next(): number {
    const s = this.#state;
    const t = s[3] ^ (s[3] << 11);
    s[3] = s[2];
    s[2] = s[1];
    s[1] = s[0];
    s[0] ^= (s[0] >>> 19) ^ t ^ (t >>> 8);
    return s[0];
  }

  /** Returns an integer from `min` to `max`, both included. */
  integer(min: number, max: number): number {
    return min + Math.floor((this.#next() / 2 ** 32) * (max - min + 1));
  }

  /** Returns a number from 0 to 1, which is never 1 itself. */
  fraction(): number {
    return this.#next() / 2 ** 32;
  }

  /** Returns true once in `n` times. */
  once(n: number): boolean {
    return this.integer(1, n) === 1;
  }

  pick<T>(from: readonly T[]): T {
    return from[this.integer(0, from.length - 1)];
  }

  bytes(length: number): Buffer {
    const out = Buffer.alloc(length);
    for (let i = 0; i < length; i++) out[i] = this.#next() >>> 24;
    return out;
  }
}
