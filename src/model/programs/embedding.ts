// Token and position embeddings. They are plain code: looking rows up and adding gradients into rows is index work on arrays
// that stay in place, and no arithmetic for an engine. Gradients are added in the order of the rows.
// Letters: B sequences, T positions, D width.

import type { BatchShape } from './block.ts';

interface EmbeddingTables {
  /** The token embedding (V, D). */
  readonly wte: Float32Array;
  /** The position embedding (C, D). */
  readonly wpe: Float32Array;
  readonly D: number;
}

/** ids (B*T) -> x (B*T, D): wte[id] + wpe[position]. The result overwrites `x`, or is a new array when `x` is not given. */
export function embed(
  ids: Uint32Array,
  { wte, wpe, D }: EmbeddingTables,
  { T, x = new Float32Array(ids.length * D) }: Pick<BatchShape, 'T'> & { readonly x?: Float32Array },
): Float32Array {
  for (let row = 0; row < ids.length; row++) {
    const [to, token, position] = [row * D, ids[row] * D, (row % T) * D];
    for (let i = 0; i < D; i++) x[to + i] = wte[token + i] + wpe[position + i];
  }
  return x;
}

/** ids and their positions (M) -> x (M, D): wte[id] + wpe[position], in a new array. */
export function embedAt(
  ids: readonly number[],
  positions: readonly number[],
  { wte, wpe, D }: EmbeddingTables,
): Float32Array {
  const x = new Float32Array(ids.length * D);
  for (const [row, id] of ids.entries()) {
    addRow(x, row * D, { from: wte, at: id * D, D });
    addRow(x, row * D, { from: wpe, at: positions[row] * D, D });
  }
  return x;
}

/** Adds each row of dx (B*T, D) into dwte (V, D) at the row's id and into dwpe (C, D) at the row's position. */
export function embedBackward(
  dx: Float32Array,
  ids: Uint32Array,
  { dwte, dwpe, D, T }: { dwte: Float32Array; dwpe: Float32Array; D: number; T: number },
): void {
  for (let row = 0; row < ids.length; row++) {
    addRow(dwte, ids[row] * D, { from: dx, at: row * D, D });
    addRow(dwpe, (row % T) * D, { from: dx, at: row * D, D });
  }
}

/** Overwrites x with x * mask / (1 - rate), which is dropout in the forward and in the backward pass. */
export function dropoutInPlace(x: Float32Array, mask: Uint8Array, rate: number): void {
  const scale = Math.fround(1 / (1 - rate));
  for (let i = 0; i < x.length; i++) x[i] = mask[i] === 0 ? 0 : x[i] * scale;
}

function addRow(to: Float32Array, start: number, { from, at, D }: { from: Float32Array; at: number; D: number }): void {
  for (let i = 0; i < D; i++) to[start + i] = to[start + i] + from[at + i];
}
