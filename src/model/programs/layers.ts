// The small layers as pairs of functions that emit graph nodes: forward beside backward. Each backward function is written by
// hand from the layer's formula. It recomputes values of the forward pass where that is cheaper than keeping them.
// Letters: N rows (sequences x positions), D and F widths. Weight gradients add to `soFar`, which is null for the first
// micro-batch.

import type { GraphBuilder, Value } from './graph.ts';
import { MICROSOFT } from './graph.ts';

/** The epsilon of every LayerNorm in GPT-2. */
export const LAYER_NORM_EPSILON = 1e-5;

// ---- Linear: y = x W + b ---------------------------------------------------------------------------------------------

/** x (N, D), weight (D, F), bias (F) or null -> y (N, F). */
export function linear(g: GraphBuilder, x: Value, { weight, bias }: { weight: Value; bias: Value | null }): Value {
  return g.node('Gemm', bias === null ? [x, weight] : [x, weight, bias]);
}

/** dy (N, F), weight (D, F) -> dx (N, D). */
export function linearBackward(g: GraphBuilder, dy: Value, weight: Value): Value {
  return g.node('Gemm', [dy, weight], { transB: 1 });
}

/**
 * The heights of the slabs in which a weight's gradient (`rowCount`, F) is computed; together they are `rowCount` rows. The
 * engine goes through all rows of a product once for each 128 of its columns, and a slab of such a height stays in the cache with
 * its operand.
 */
export function gradientSlabs(rowCount: number): number[] {
  if (rowCount < 128) return [rowCount];
  const count = Math.max(2, Math.ceil(rowCount / 384));
  const height = Math.ceil(rowCount / count);
  return Array.from({ length: count }, (_, i) => Math.min(height, rowCount - i * height));
}

/**
 * x (N, D), dy (N, F), soFar -> soFar + x^T dy (D, F), as slabs of rows; `soFar` has one value for each slab. A node of its own
 * transposes x once, because the engine would otherwise transpose x again for each slab.
 */
export function linearWeightGradient(
  g: GraphBuilder,
  x: Value,
  { dy, slabs, soFar }: { dy: Value; slabs: readonly number[]; soFar: readonly (Value | null)[] },
): Value[] {
  const turned = g.node('Transpose', [x], { perm: [1, 0] });
  const factors =
    slabs.length === 1 ? [turned] : g.nodes('Split', [turned, g.integers(slabs)], slabs.length, { axis: 0 });
  return factors.map((factor, i) => {
    const before = soFar[i];
    return g.node('Gemm', before === null ? [factor, dy] : [factor, dy, before]);
  });
}

/** dy (N, F), soFar (F) -> soFar + the sum of the rows of dy (F). */
export function rowSum(g: GraphBuilder, dy: Value, soFar: Value | null): Value {
  const sum = g.node('ReduceSum', [dy, g.integers([0])], { keepdims: 0 });
  return soFar === null ? sum : g.node('Add', [soFar, sum]);
}

// ---- LayerNorm (Ba, Kiros and Hinton, 2016) --------------------------------------------------------------------------

/** x (N, D), weight (D), bias (D) -> y (N, D). */
export function layerNorm(g: GraphBuilder, x: Value, { weight, bias }: { weight: Value; bias: Value }): Value {
  return g.node('LayerNormalization', [x, weight, bias], { axis: -1, epsilon: { float: LAYER_NORM_EPSILON } });
}

/** x (N, D), weight (D) -> the normalized rows before scale and shift (N, D), and 1 / deviation (N, 1). */
function normalize(g: GraphBuilder, x: Value, weight: Value): { normalized: Value; inverseDeviation: Value } {
  const [, mean, inverseDeviation] = g.nodes('LayerNormalization', [x, weight], 3, {
    axis: -1,
    epsilon: { float: LAYER_NORM_EPSILON },
  });
  const centered = g.node('Sub', [x, mean]);
  return { normalized: g.node('Mul', [centered, inverseDeviation]), inverseDeviation: inverseDeviation };
}

/**
 * x (N, D), dy (N, D), weight (D) -> dx (N, D).
 * With the normalized rows n and e = dy * weight, dx is (e - mean(e) - n mean(e n)) / deviation.
 */
export function layerNormBackward(g: GraphBuilder, x: Value, { dy, weight }: { dy: Value; weight: Value }): Value {
  const { normalized, inverseDeviation } = normalize(g, x, weight);
  const e = g.node('Mul', [dy, weight]);
  const axis = g.integers([-1]);
  const meanE = g.node('ReduceMean', [e, axis], { keepdims: 1 });
  const meanEN = g.node('ReduceMean', [g.node('Mul', [e, normalized]), axis], { keepdims: 1 });
  const along = g.node('Mul', [normalized, meanEN]);
  return g.node('Mul', [g.node('Sub', [g.node('Sub', [e, meanE]), along]), inverseDeviation]);
}

/** x (N, D), dy (N, D), weight (D), soFar (D) -> soFar + the sum of dy * normalized rows, which is the scale's gradient (D). */
export function layerNormScaleGradient(
  g: GraphBuilder,
  x: Value,
  { dy, weight, soFar }: { dy: Value; weight: Value; soFar: Value | null },
): Value {
  const { normalized } = normalize(g, x, weight);
  return rowSum(g, g.node('Mul', [dy, normalized]), soFar);
}

// ---- GELU, tanh form (Hendrycks and Gimpel, 2016), as GPT-2 uses it --------------------------------------------------

const GELU_CUBIC = 0.044715;
/** The factor of z = 2 sqrt(2/pi) (u + 0.044715 u^3). Since tanh(z/2) = 2 sigmoid(z) - 1, gelu(u) = u sigmoid(z). */
const GELU_SLOPE = 2 * Math.sqrt(2 / Math.PI);

/** u (N, F) -> gelu(u) (N, F). */
export function gelu(g: GraphBuilder, u: Value): Value {
  return g.node('Gelu', [u], { approximate: 'tanh' });
}

/**
 * u (N, F), dy (N, F) -> du (N, F). With s = sigmoid(z), gelu' is s (1 + (1 - s) u z'), and u z' is 3 z - 2 a u, where a is
 * the slope of z at 0.
 */
export function geluBackward(g: GraphBuilder, u: Value, dy: Value): Value {
  const square = g.node('Mul', [u, u]);
  const slope = g.node('Add', [g.node('Mul', [square, g.scalar(GELU_SLOPE * GELU_CUBIC)]), g.scalar(GELU_SLOPE)]);
  const z = g.node('Mul', [u, slope]);
  const s = g.node('Sigmoid', [z]);
  const uzPrime = g.node('Sub', [g.node('Mul', [z, g.scalar(3)]), g.node('Mul', [u, g.scalar(2 * GELU_SLOPE)])]);
  const rest = g.node('Mul', [g.node('Sub', [g.scalar(1), s]), uzPrime]);
  const derivative = g.node('Mul', [s, g.node('Add', [rest, g.scalar(1)])]);
  return g.node('Mul', [dy, derivative]);
}

// ---- Dropout (Srivastava et al., 2014) -------------------------------------------------------------------------------

/** A dropout's mask, uint8 of x's shape (1 keeps), and the probability of dropping. */
export interface Dropout {
  readonly mask: Value;
  readonly rate: number;
}

/** Emits x * mask / (1 - rate). The backward pass of dropout is the same dropout of the gradient. */
export function dropout(g: GraphBuilder, x: Value, drop: Dropout | null): Value {
  if (drop === null) return x;
  const kept = g.node('Cast', [drop.mask], { to: 1 });
  return g.node('Mul', [x, g.node('Mul', [kept, g.scalar(1 / (1 - drop.rate))])]);
}

// ---- Products with transposed sides ----------------------------------------------------------------------------------

/** Emits a b^T over the last two axes, times `factor`. */
export function productTransposedB(g: GraphBuilder, a: Value, { b, factor = 1 }: { b: Value; factor?: number }): Value {
  return g.node('FusedMatMul', [a, b], { transB: 1, alpha: { float: factor } }, { domain: MICROSOFT });
}

/** Emits a^T b over the last two axes, times `factor`. */
export function productTransposedA(g: GraphBuilder, a: Value, { b, factor = 1 }: { b: Value; factor?: number }): Value {
  return g.node('FusedMatMul', [a, b], { transA: 1, alpha: { float: factor } }, { domain: MICROSOFT });
}

/** Emits a b over the last two axes, times `factor`. */
export function product(g: GraphBuilder, a: Value, { b, factor = 1 }: { b: Value; factor?: number }): Value {
  return g.node('FusedMatMul', [a, b], { alpha: { float: factor } }, { domain: MICROSOFT });
}
