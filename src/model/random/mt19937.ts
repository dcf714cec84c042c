// MT19937 as PyTorch's CPU generator runs it: Matsumoto and Nishimura's mt19937ar with `init_genrand` seeding
// (http://www.math.sci.hiroshima-u.ac.jp/m-mat/MT/emt.html). Only initialization draws from it, in PyTorch's order of draws.
// Dropout, shuffling and sampling use the counter-based generator of philox.ts.

import { assert } from '../errors.ts';

const N = 624;
const M = 397;

/** A stream of 32-bit draws. It is stateful: the n-th draw needs the n-1 before it. */
export interface Mt19937 {
  /** Returns the next draw, from 0 to 2^32 - 1. */
  next(): number;
  /** Overwrites `out` with the next `out.length` draws. */
  fill(out: Uint32Array): void;
}

/** Returns the generator as `torch.manual_seed(seed)` leaves it. Only the low 32 bits of a seed count, as in PyTorch. */
export function createMt19937(seed: number): Mt19937 {
  assert(Number.isSafeInteger(seed) && seed >= 0, `seed ${seed} is a non-negative integer below 2^53`);
  const state = new Int32Array(N);
  state[0] = (seed % 2 ** 32) | 0;
  for (let i = 1; i < N; i++) {
    const previous = state[i - 1];
    state[i] = (Math.imul(1812433253, previous ^ (previous >>> 30)) + i) | 0;
  }
  let position = N;

  const fill = (out: Uint32Array): void => {
    let done = 0;
    while (done < out.length) {
      if (position === N) {
        twist(state);
        position = 0;
      }
      const count = Math.min(N - position, out.length - done);
      for (let i = 0; i < count; i++) {
        let y = state[position + i];
        y ^= y >>> 11;
        y ^= (y << 7) & 0x9d2c5680;
        y ^= (y << 15) & 0xefc60000;
        y ^= y >>> 18;
        out[done + i] = y;
      }
      position += count;
      done += count;
    }
  };

  const one = new Uint32Array(1);
  const next = (): number => {
    fill(one);
    return one[0];
  };
  return { next, fill };
}

/** Overwrites the state (624,) with the next state. Three ranges avoid an index modulo 624. */
function twist(state: Int32Array): void {
  for (let i = 0; i < N - M; i++) state[i] = state[i + M] ^ mix(state[i], state[i + 1]);
  for (let i = N - M; i < N - 1; i++) state[i] = state[i + M - N] ^ mix(state[i], state[i + 1]);
  state[N - 1] = state[M - 1] ^ mix(state[N - 1], state[0]);
}

function mix(upper: number, lower: number): number {
  const y = (upper & 0x80000000) | (lower & 0x7fffffff);
  return (y >>> 1) ^ (-(y & 1) & 0x9908b0df);
}
