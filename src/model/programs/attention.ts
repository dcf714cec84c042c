// Causal multi-head attention (Vaswani et al., 2017) between the projections: it turns rows that hold q, k and v side by side
// into the context rows, and computes the gradients of that. The projections themselves are linear layers of the block.
// Letters: B sequences, T positions, H heads, W = D/H width of a head; rows are B*T.

import { dropout, product, productTransposedA, productTransposedB, type Dropout } from './layers.ts';
import type { GraphBuilder, Value } from './graph.ts';

export interface AttentionShape {
  readonly B: number;
  readonly T: number;
  readonly H: number;
  readonly D: number;
}

/** rows (B*T, D) -> heads (B, H, T, W). */
function toHeads(g: GraphBuilder, rows: Value, { B, T, H, D }: AttentionShape): Value {
  const split = g.node('Reshape', [rows, g.integers([B, T, H, D / H])]);
  return g.node('Transpose', [split], { perm: [0, 2, 1, 3] });
}

/** heads (B, H, T, W) -> rows (B*T, D). */
function toRows(g: GraphBuilder, heads: Value, { B, T, D }: AttentionShape): Value {
  return g.node('Reshape', [g.node('Transpose', [heads], { perm: [0, 2, 1, 3] }), g.integers([B * T, D])]);
}

/** qkv (B*T, 3D) -> q, k, v (B, H, T, W). */
function splitHeads(g: GraphBuilder, qkv: Value, shape: AttentionShape): Value[] {
  const { D } = shape;
  return g.nodes('Split', [qkv, g.integers([D, D, D])], 3, { axis: 1 }).map((rows) => toHeads(g, rows, shape));
}

/** Returns a mask (T, T) that is 0 where a query may look, and -Infinity on the positions ahead of the query. */
function causalMask(T: number): Float32Array {
  const mask = new Float32Array(T * T);
  for (let query = 0; query < T; query++) mask.fill(-Infinity, query * T + query + 1, (query + 1) * T);
  return mask;
}

/** qkv (B*T, 3D) -> context (B*T, D) and the attention's probabilities before dropout (B, H, T, T), which backward needs. */
export function attention(
  g: GraphBuilder,
  qkv: Value,
  { shape, drop }: { shape: AttentionShape; drop: Dropout | null },
): { context: Value; probabilities: Value } {
  const [q, k, v] = splitHeads(g, qkv, shape);
  const scores = productTransposedB(g, q, { b: k, factor: 1 / Math.sqrt(shape.D / shape.H) });
  const masked = g.node('Add', [scores, g.constant(causalMask(shape.T), [shape.T, shape.T])]);
  const probabilities = g.node('Softmax', [masked], { axis: -1 });
  return { context: toRows(g, product(g, dropout(g, probabilities, drop), { b: v }), shape), probabilities };
}

/**
 * dContext (B*T, D) and what the forward pass kept -> dqkv (B*T, 3D).
 * For a row of probabilities p and its gradient dp, the scores' gradient is p * (dp - sum(dp p)). The sum equals the inner
 * product of the context and its gradient, which is cheaper (Dao et al., 2022). This also holds with dropout.
 */
export function attentionBackward(
  g: GraphBuilder,
  dContext: Value,
  {
    qkv,
    probabilities,
    context,
    shape,
    drop,
  }: { qkv: Value; probabilities: Value; context: Value; shape: AttentionShape; drop: Dropout | null },
): Value {
  const { B, T, H, D } = shape;
  const [q, k, v] = splitHeads(g, qkv, shape);
  const dHeads = toHeads(g, dContext, shape);
  const dv = productTransposedA(g, dropout(g, probabilities, drop), { b: dHeads });
  const dProbabilities = dropout(g, productTransposedB(g, dHeads, { b: v }), drop);
  const perHead = g.node('Reshape', [g.node('Mul', [dContext, context]), g.integers([B, T, H, D / H])]);
  const inner = g.node('Transpose', [g.node('ReduceSum', [perHead, g.integers([-1])], { keepdims: 1 })], {
    perm: [0, 2, 1, 3],
  });
  const dScores = g.node('Mul', [probabilities, g.node('Sub', [dProbabilities, inner])]);
  const factor = 1 / Math.sqrt(D / H);
  const dq = product(g, dScores, { b: k, factor });
  const dk = productTransposedA(g, dScores, { b: q, factor });
  return g.node(
    'Concat',
    [dq, dk, dv].map((heads) => toRows(g, heads, shape)),
    { axis: 1 },
  );
}
