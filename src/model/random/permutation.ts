// A seeded permutation of [0, n) that needs no table: a Feistel network over Philox with cycle walking (Black and
// Rogaway, "Ciphers with arbitrary finite domains"). Any worker can find the i-th sequence of an epoch, and a resumed job
// finds the same one.

import { assert } from '../errors.ts';
import { philox, PURPOSE, setAddress } from './philox.ts';

const ROUNDS = 6;
const PERMUTATION_LENGTH_MAX = 2 ** 52;

const input = new Uint32Array(6);
const block = new Uint32Array(4);

/**
 * Returns where the permutation of `epoch` sends `i`. It is a bijection of [0, n), and another one for every (seed, epoch).
 * 0 <= i < n <= 2^52 must hold; `seed` and `epoch` are non-negative integers below 2^53. A call takes a few microseconds whatever
 * n is.
 */
export function permute(
  i: number,
  options: { readonly n: number; readonly seed: number; readonly epoch: number },
): number {
  const { n, seed, epoch } = options;
  assert(Number.isInteger(n) && n >= 1 && n <= PERMUTATION_LENGTH_MAX, `length ${n} is between 1 and 2^52`);
  assert(Number.isInteger(i) && i >= 0 && i < n, `index ${i} is below ${n}`);
  let half = 1;
  while (4 ** half < n) half++;
  const side = 2 ** half;
  setAddress(input, { seed, purpose: PURPOSE.shuffle, step: epoch, index: 0 });

  // The network permutes [0, side^2), which has fewer than 4n values unless n is tiny. Following a cycle until it comes
  // back below n makes a permutation of [0, n).
  let value = i;
  do {
    let left = Math.floor(value / side);
    let right = value % side;
    for (let round = 0; round < ROUNDS; round++) {
      // The index of the draw is round * 2^32 + right: right has at most 26 bits.
      input[0] = right;
      input[1] = round;
      philox(block, input);
      const mixed = (left ^ (block[0] & (side - 1))) >>> 0;
      left = right;
      right = mixed;
    }
    value = left * side + right;
  } while (value >= n);
  return value;
}
