// One block in training as three programs: forward (see forward.ts), the inputs' backward pass (B) and the weights' gradients
// (W). They are compiled once per shape and serve every block, because the weights are inputs. B and W are apart so that a
// pipeline can send dx upstream before it spends time on weights (Qi et al., 2023, "Zero Bubble Pipeline Parallelism").

import { attention, attentionBackward, type AttentionShape } from './attention.ts';
import type { GptConfig } from '../config.ts';
import { blockForward, blockNorm, type BlockLayers } from './forward.ts';
import { GraphBuilder, type Graph, type Value } from './graph.ts';
import {
  dropout,
  gelu,
  geluBackward,
  gradientSlabs,
  layerNormBackward,
  layerNormScaleGradient,
  linear,
  linearBackward,
  linearWeightGradient,
  rowSum,
  type Dropout,
} from './layers.ts';
import { blockTable, type BlockTensorName } from '../tensors.ts';

/** A micro-batch: B sequences of T tokens. */
export interface BatchShape {
  readonly B: number;
  readonly T: number;
}

/**
 * What the forward program returns beside y, for B and W: each value has B*T rows, except the attention's probabilities, which
 * are (B, H, T, T).
 */
export const BLOCK_SAVED = ['qkv', 'probabilities', 'context', 'a', 'u'] as const;
/**
 * What B returns beside dx, for W: the gradients of rows. dMixed and dFed are the gradients of the two projections' outputs,
 * before these enter a dropout. Without dropout dFed equals dy and is not returned.
 */
export const BLOCK_ROW_GRADIENTS = ['dqkv', 'dMixed', 'du', 'dn1', 'dn2', 'dFed'] as const;
/** The name of rows that the block's programs exchange. */
export type BlockRowName = keyof ReturnType<typeof blockRowWidths>;

/** Returns the width of each kind of rows that the block's programs exchange. */
export function blockRowWidths(config: GptConfig) {
  const table = blockTable(config);
  const D = config.emb_dim;
  const [qkv, u] = (['attn.c_attn.weight', 'mlp.c_fc.weight'] as const).map((name) => table.get(name)!.shape[1]);
  const forward = { x: D, qkv, context: D, a: D, u };
  return { ...forward, dy: D, dqkv: qkv, dMixed: D, du: u, dn1: D, dn2: D, dFed: D };
}
/**
 * The masks of a block's three dropouts: of the attention's probabilities (B, H, T, T) and of both residual branches (B*T, D).
 */
export const BLOCK_MASKS = ['maskProbabilities', 'maskAttention', 'maskFeedForward'] as const;

interface BlockInputs {
  readonly shape: AttentionShape;
  /** Declares rows (B*T, width) as an input. */
  readonly rows: (name: BlockRowName) => Value;
  /** Declares the attention's probabilities as an input. */
  readonly probabilities: () => Value;
  /** Returns one of the block's tensors, which becomes an input at the first call. */
  readonly tensor: (name: BlockTensorName) => Value;
  readonly drop: (name: (typeof BLOCK_MASKS)[number]) => Dropout | null;
  readonly layers: BlockLayers;
}

function blockInputs(g: GraphBuilder, config: GptConfig, { B, T }: BatchShape): BlockInputs {
  const { emb_dim: D, n_heads: H, drop_rate: rate } = config;
  const table = blockTable(config);
  const widths = blockRowWidths(config);
  const declared = new Map<string, Value>();
  const once = (name: string, declare: () => Value): Value => {
    const value = declared.get(name) ?? declare();
    declared.set(name, value);
    return value;
  };
  const tensor = (name: BlockTensorName): Value => once(name, () => g.input(name, table.get(name)!.shape));
  const drop = (name: (typeof BLOCK_MASKS)[number]): Dropout | null => {
    if (rate === 0) return null;
    const dims = name === 'maskProbabilities' ? [B, H, T, T] : [B * T, D];
    return { mask: once(name, () => g.input(name, dims, 'uint8')), rate };
  };
  return {
    shape: { B, T, H, D },
    rows: (name) => g.input(name, [B * T, widths[name]]),
    probabilities: () => g.input('probabilities', [B, H, T, T]),
    tensor,
    drop,
    layers: {
      g,
      tensor,
      dense: (x, layer) => {
        const bias = `${layer}.bias` as const;
        return linear(g, x, { weight: tensor(`${layer}.weight`), bias: table.has(bias) ? tensor(bias) : null });
      },
      drop: (branch, name) => dropout(g, branch, drop(name === 'attention' ? 'maskAttention' : 'maskFeedForward')),
    },
  };
}

/** x (B*T, D), tensors, masks -> y (B*T, D) and, when `save`, BLOCK_SAVED. Without `save` there is no dropout either. */
export function blockForwardProgram(config: GptConfig, batch: BatchShape, { save }: { save: boolean }): Graph {
  const g = new GraphBuilder(save ? 'block forward' : 'block evaluate');
  const settings = save ? config : { ...config, drop_rate: 0 };
  const { shape, rows, drop, layers } = blockInputs(g, settings, batch);
  const saved: Record<string, Value> = {};
  const { a, u, y } = blockForward(layers, rows('x'), (qkv) => {
    const { context, probabilities } = attention(g, qkv, { shape, drop: drop('maskProbabilities') });
    Object.assign(saved, { qkv, probabilities, context });
    return context;
  });
  g.output('y', y);
  if (save) for (const [name, value] of Object.entries({ ...saved, a, u })) g.output(name, value);
  return g.build();
}

/** The block's tensors that B reads. The biases are only added, so the gradients of the inputs do not depend on them. */
export const backwardTensorNames = (config: GptConfig): BlockTensorName[] =>
  [...blockTable(config).keys()].filter((name) => !name.endsWith('.bias'));

/** The block's tensors that W reads in order to compute the normalized rows again. */
export const normTensorNames = (config: GptConfig): BlockTensorName[] =>
  [...blockTable(config).keys()].filter((name) => name.startsWith('ln_'));

/** B: dy (B*T, D), x, BLOCK_SAVED, tensors, masks -> dx (B*T, D) and BLOCK_ROW_GRADIENTS. */
export function blockBackwardProgram(config: GptConfig, batch: BatchShape): Graph {
  const g = new GraphBuilder('block backward, inputs');
  const { shape, rows, tensor, drop, ...inputs } = blockInputs(g, config, batch);
  const [dy, x, qkv, context, a, u] = (['dy', 'x', 'qkv', 'context', 'a', 'u'] as const).map(rows);
  const probabilities = inputs.probabilities();

  const dFed = dropout(g, dy, drop('maskFeedForward'));
  const du = geluBackward(g, u, linearBackward(g, dFed, tensor('mlp.c_proj.weight')));
  const dn2 = linearBackward(g, du, tensor('mlp.c_fc.weight'));
  const da = g.node('Add', [dy, layerNormBackward(g, a, { dy: dn2, weight: tensor('ln_2.weight') })]);

  const dMixed = dropout(g, da, drop('maskAttention'));
  const dContext = linearBackward(g, dMixed, tensor('attn.c_proj.weight'));
  const dqkv = attentionBackward(g, dContext, { qkv, probabilities, context, shape, drop: drop('maskProbabilities') });
  const dn1 = linearBackward(g, dqkv, tensor('attn.c_attn.weight'));
  g.output('dx', g.node('Add', [da, layerNormBackward(g, x, { dy: dn1, weight: tensor('ln_1.weight') })]));
  for (const [name, value] of Object.entries({ dqkv, dMixed, du, dn1, dn2 })) g.output(name, value);
  if (config.drop_rate > 0) g.output('dFed', dFed);
  return g.build();
}

/** One of the arrays in which W reads and writes a tensor's gradient. The arrays of a gradient follow each other in memory. */
interface GradientSlice {
  /** The name of the program's input or output. */
  readonly name: string;
  readonly dims: readonly number[];
  /** The index of the slice's first element within the tensor. */
  readonly start: number;
}

/** The slabs of a matrix are named `<tensor>.<suffix>.<n>`; a vector or a single slab is named `<tensor>.<suffix>`. */
export function gradientSlices(
  { name, shape }: { readonly name: string; readonly shape: readonly number[] },
  suffix: 'soFar' | 'gradient',
): GradientSlice[] {
  const slabs = shape.length === 2 ? gradientSlabs(shape[0]) : [];
  if (slabs.length < 2) return [{ name: `${name}.${suffix}`, dims: shape, start: 0 }];
  let start = 0;
  return slabs.map((rows, i) => {
    const slice = { name: `${name}.${suffix}.${i}`, dims: [rows, shape[1]], start };
    start += rows * shape[1];
    return slice;
  });
}

/**
 * W: x, context, a, u, BLOCK_ROW_GRADIENTS, both LayerNorms' tensors and, with `accumulate`, every gradient so far in the
 * `soFar` slices -> the gradients in the `gradient` slices. Both kinds of slices may share their memory.
 */
export function blockWeightGradientsProgram(
  config: GptConfig,
  batch: BatchShape,
  { accumulate }: { accumulate: boolean },
): Graph {
  const g = new GraphBuilder('block backward, weights');
  const { rows, layers } = blockInputs(g, config, batch);
  const [x, context, a, u] = (['x', 'context', 'a', 'u'] as const).map(rows);
  const [dqkv, dMixed, du, dFed] = (['dqkv', 'dMixed', 'du', 'dFed'] as const).map(rows);
  const [dn1, dn2] = [rows('dn1'), rows('dn2')];
  for (const name of normTensorNames(config)) layers.tensor(name);

  type Gradient = (soFar: readonly (Value | null)[], slabs: readonly number[]) => Value[];
  const matrix =
    (from: () => Value, dy: Value): Gradient =>
    (soFar, slabs) =>
      linearWeightGradient(g, from(), { dy, slabs, soFar });
  const bias =
    (dy: Value): Gradient =>
    ([soFar]) => [rowSum(g, dy, soFar)];
  const scale =
    (from: Value, dy: Value, weight: Value): Gradient =>
    ([soFar]) => [layerNormScaleGradient(g, from, { dy, weight, soFar })];
  const gradient: Readonly<Record<BlockTensorName, Gradient>> = {
    'ln_1.weight': scale(x, dn1, layers.tensor('ln_1.weight')),
    'ln_1.bias': bias(dn1),
    'attn.c_attn.weight': matrix(() => blockNorm(layers, x, 'ln_1'), dqkv),
    'attn.c_attn.bias': bias(dqkv),
    'attn.c_proj.weight': matrix(() => context, dMixed),
    'attn.c_proj.bias': bias(dMixed),
    'ln_2.weight': scale(a, dn2, layers.tensor('ln_2.weight')),
    'ln_2.bias': bias(dn2),
    'mlp.c_fc.weight': matrix(() => blockNorm(layers, a, 'ln_2'), du),
    'mlp.c_fc.bias': bias(du),
    'mlp.c_proj.weight': matrix(() => gelu(g, u), dFed),
    'mlp.c_proj.bias': bias(dFed),
  };
  for (const [name, { shape, trained }] of blockTable(config)) {
    if (!trained) continue;
    const outputs = gradientSlices({ name, shape }, 'gradient');
    const soFar = gradientSlices({ name, shape }, 'soFar').map((slice) =>
      accumulate ? g.input(slice.name, slice.dims) : null,
    );
    const values = gradient[name](
      soFar,
      outputs.map((slice) => slice.dims[0]),
    );
    for (const [i, slice] of outputs.entries()) g.output(slice.name, values[i]);
  }
  return g.build();
}
