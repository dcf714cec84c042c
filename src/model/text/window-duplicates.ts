// How many validation windows the model has seen in training: windows whose tokens also occur, at any position, in the training
// data. The rolling hash of Karp and Rabin finds candidates in one scan, and comparing tokens decides.

import { assert } from '../errors.ts';

/** The base is odd, so that no token's contribution is shifted out of the 32 bits. */
const BASE = 0x01000193;
const FILTER_BITS = 20;

/**
 * Counts the windows of `length` tokens that start at `from`, `from` + `stride`, ... within `tokens` and that also occur
 * somewhere in tokens [0, from).
 */
export function countDuplicateWindows(
  tokens: Uint16Array | Uint32Array,
  { from, length, stride }: { readonly from: number; readonly length: number; readonly stride: number },
): number {
  assert(length >= 1 && stride >= 1, `windows of ${length} tokens every ${stride}`);
  const wanted = new Map<number, number[]>();
  const filter = new Uint8Array(2 ** FILTER_BITS);
  for (let start = from; start + length <= tokens.length; start += stride) {
    let hash = 0;
    for (let i = start; i < start + length; i++) hash = (Math.imul(hash, BASE) + tokens[i] + 1) | 0;
    const starts = wanted.get(hash);
    if (starts === undefined) wanted.set(hash, [start]);
    else starts.push(start);
    filter[hash >>> (32 - FILTER_BITS)] = 1;
  }

  // `leaving` becomes the factor of the token that leaves the window.
  let leaving = 1;
  for (let i = 0; i < length; i++) leaving = Math.imul(leaving, BASE);
  let hash = 0;
  let count = 0;
  for (let end = 0; end < from; end++) {
    hash = (Math.imul(hash, BASE) + tokens[end] + 1) | 0;
    if (end >= length) hash = (hash - Math.imul(tokens[end - length] + 1, leaving)) | 0;
    if (end + 1 < length || filter[hash >>> (32 - FILTER_BITS)] === 0) continue;
    const starts = wanted.get(hash);
    if (starts === undefined) continue;
    const left = starts.filter((start) => !isEqual(tokens, { start, other: end + 1 - length, length }));
    count += starts.length - left.length;
    if (left.length === 0) wanted.delete(hash);
    else wanted.set(hash, left);
  }
  return count;
}

function isEqual(
  tokens: Uint16Array | Uint32Array,
  { start, other, length }: { readonly start: number; readonly other: number; readonly length: number },
): boolean {
  for (let i = 0; i < length; i++) if (tokens[start + i] !== tokens[other + i]) return false;
  return true;
}
