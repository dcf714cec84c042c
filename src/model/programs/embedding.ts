// Token and position embeddings. Looking rows up and adding gradients back into rows is index work on arrays that stay in
// place, not arithmetic for an engine, so it is plain code; the order of the additions is the order of the rows.
// Letters: B sequences, T positions, D width.

import type { BatchShape } from './block.ts';

interface EmbeddingTables {
  /** (V, D) */
  readonly wte: Float32Array;
  /** (C, D) */
  readonly wpe: Float32Array;
  readonly D: number;
}

/** ids (B*T) -> x (B*T, D): wte[id] + wpe[position], new or overwriting `x`. */
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

/** ids and their positions (M) -> x (M, D): wte[id] + wpe[position], new. */
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

/** dx (B*T, D) is added into dwte (V, D) at each row's id and into dwpe (C, D) at each row's position. */
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

/** Dropout in place, both directions: x * mask / (1 - rate). */
export function dropoutInPlace(x: Float32Array, mask: Uint8Array, rate: number): void {
  const scale = Math.fround(1 / (1 - rate));
  for (let i = 0; i < x.length; i++) x[i] = mask[i] === 0 ? 0 : x[i] * scale;
}

function addRow(to: Float32Array, start: number, { from, at, D }: { from: Float32Array; at: number; D: number }): void {
  for (let i = 0; i < D; i++) to[start + i] = to[start + i] + from[at + i];
}
