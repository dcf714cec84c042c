// Philox4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy as 1, 2, 3"
// (Random123). A draw is a pure function of (seed, purpose, step, index). It depends neither on who makes it nor on
// earlier draws, which is why dropout, shuffling and sampling use it. Initialization uses mt19937.ts instead.
//
// The key is the seed, which is below 2^53: word 0 holds its low 32 bits and word 1 its high 21. The counter has 128 bits:
// words 0 and 1 hold the index (its low 32 bits and its high 21), word 2 holds the low 32 bits of the step, and word 3 holds the
// purpose in its top byte and the high 21 bits of the step below.

import { assert } from '../errors.ts';

/**
 * What a draw is for. Two purposes never share a draw. The numbers are part of every seeded result: never renumber
 * them.
 */
export const PURPOSE = {
  dropoutEmbedding: 1,
  dropoutAttention: 2,
  /** This dropout follows the attention's output projection. */
  dropoutAttentionResidual: 3,
  dropoutFeedForwardResidual: 4,
  shuffle: 5,
  sampling: 6,
} as const;

export type Purpose = (typeof PURPOSE)[keyof typeof PURPOSE];

/** The address of a draw. `seed`, `step` and `index` are integers from 0 to 2^53 - 1. */
interface DrawAddress {
  readonly seed: number;
  readonly purpose: Purpose;
  readonly step: number;
  readonly index: number;
}

/**
 * Computes one block of the generator. input (6,) holds four counter words, then two key words. out (4,) is overwritten with 128
 * random bits. Both may be parts of one buffer. Nothing is allocated.
 */
export function philox(out: Uint32Array, input: Uint32Array): void {
  let c0 = input[0] | 0;
  let c1 = input[1] | 0;
  let c2 = input[2] | 0;
  let c3 = input[3] | 0;
  let k0 = input[4] | 0;
  let k1 = input[5] | 0;
  for (let round = 0; round < 10; round++) {
    // The high halves of the two 64-bit products come from 16-bit limbs. 32-bit integer arithmetic is enough, because no partial
    // sum reaches 2^32.
    const a0 = c0 & 0xffff;
    const a1 = c0 >>> 16;
    const aMiddle = Math.imul(a1, 0x1f53) + (Math.imul(a0, 0x1f53) >>> 16);
    const aHigh = Math.imul(a1, 0xd251) + (aMiddle >>> 16) + ((Math.imul(a0, 0xd251) + (aMiddle & 0xffff)) >>> 16);
    const b0 = c2 & 0xffff;
    const b1 = c2 >>> 16;
    const bMiddle = Math.imul(b1, 0x8d57) + (Math.imul(b0, 0x8d57) >>> 16);
    const bHigh = Math.imul(b1, 0xcd9e) + (bMiddle >>> 16) + ((Math.imul(b0, 0xcd9e) + (bMiddle & 0xffff)) >>> 16);
    const aLow = Math.imul(c0, 0xd2511f53);
    c0 = bHigh ^ c1 ^ k0;
    c1 = Math.imul(c2, 0xcd9e8d57);
    c2 = aHigh ^ c3 ^ k1;
    c3 = aLow;
    k0 = (k0 + 0x9e3779b9) | 0;
    k1 = (k1 + 0xbb67ae85) | 0;
  }
  out[0] = c0;
  out[1] = c1;
  out[2] = c2;
  out[3] = c3;
}

/** Overwrites input (6,) with the counter and the key of an address: see the head of this file. */
export function setAddress(input: Uint32Array, address: DrawAddress): void {
  const { seed, purpose, step, index } = address;
  assert(isCount(seed) && isCount(step) && isCount(index), `seed ${seed}, step ${step}, index ${index} are below 2^53`);
  setIndex(input, index);
  input[2] = step;
  input[3] = purpose * 2 ** 24 + Math.floor(step / 2 ** 32);
  input[4] = seed;
  input[5] = Math.floor(seed / 2 ** 32);
}

function setIndex(input: Uint32Array, index: number): void {
  // A typed array keeps a number modulo 2^32.
  input[0] = index;
  input[1] = Math.floor(index / 2 ** 32);
}

const isCount = (value: number): boolean => Number.isSafeInteger(value) && value >= 0;

const input = new Uint32Array(6);
const block = new Uint32Array(4);

/** Returns a double in [0, 1) with 53 random bits. */
export function uniform(address: DrawAddress): number {
  setAddress(input, address);
  philox(block, input);
  return ((block[0] >>> 5) * 2 ** 26 + (block[1] >>> 6)) * 2 ** -53;
}

/**
 * Overwrites `out` with 1 (keep) and 0 (drop). Each element is dropped with probability round(rate * 65536) / 65536. `out[i]` is
 * element index + i of the stream, which is lane (index + i) % 8, of 16 bits, of block floor((index + i) / 8). So any chunking
 * of a stream gives the same mask. Streams are kept apart by their steps or by offsets. `rate` is at least 0 and below 1.
 */
export function dropoutMask(out: Uint8Array, options: DrawAddress & { readonly rate: number }): void {
  const { index, rate } = options;
  assert(isCount(index) && isCount(index + out.length), `elements ${index} to ${index + out.length} are below 2^53`);
  assert(rate >= 0 && rate < 1, `rate ${rate} is at least 0 and below 1`);
  const threshold = Math.round(rate * 65536);
  if (threshold === 0) {
    out.fill(1);
    return;
  }
  let at = Math.floor(index / 8);
  setAddress(input, { ...options, index: at });
  let i = -(index % 8);
  for (; i < out.length; i += 8, at++) {
    setIndex(input, at);
    philox(block, input);
    if (i >= 0 && i + 8 <= out.length) {
      for (let word = 0; word < 4; word++) {
        const bits = block[word];
        // The sign bit of threshold - 1 - lane is set when the lane reaches the threshold.
        out[i + 2 * word] = (threshold - 1 - (bits & 0xffff)) >>> 31;
        out[i + 2 * word + 1] = (threshold - 1 - (bits >>> 16)) >>> 31;
      }
    } else {
      // An end of `out` cuts this block, so only the elements inside are written.
      for (let lane = 0; lane < 8; lane++) {
        const bits = (block[lane >> 1] >>> (16 * (lane & 1))) & 0xffff;
        if (i + lane >= 0 && i + lane < out.length) out[i + lane] = bits >= threshold ? 1 : 0;
      }
    }
  }
}
