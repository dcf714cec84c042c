// The programs that generate tokens. Weights are constants, so that the engine packs them once; rows of any number of
// sequences go through qkv, feed and head together, attention runs per sequence over its own cache. Splitting a block at
// attention keeps the cache in JavaScript and out of the programs' outputs. Training programs are in block.ts and head.ts.
// Letters: M rows, R query rows of one sequence, D width, H heads, W = D/H, P cached positions (capacity), V vocabulary.

import { assert } from './errors.ts';
import type { GptConfig } from './config.ts';
import { GraphBuilder, type Graph, type Value } from './graph.ts';
import { gelu, layerNorm, linear, product } from './layers.ts';
import { headTensorNames } from './head.ts';
import { tensorTable, type BlockTensorName } from './tensors.ts';

/** A cache's capacity is a multiple of this: then attention's bits do not depend on the capacity. */
export const CACHE_STEP = 64;

/** The tensors of the blocks and the head, by their names in the table. */
export type Weights = ReadonlyMap<string, Float32Array>;

function constants(g: GraphBuilder, config: GptConfig, weights: Weights): (name: string) => Value {
  const shapes = new Map(tensorTable(config).map((tensor) => [tensor.name, tensor.shape]));
  return (name) => {
    const data = weights.get(name);
    const shape = shapes.get(name);
    assert(data !== undefined && shape !== undefined, `no weights for ${name}`);
    return g.constant(data, shape);
  };
}

/** Tensors of block `block`; the bias of c_attn is null when the configuration has none. */
function blockConstants(
  g: GraphBuilder,
  config: GptConfig,
  { weights, block }: { weights: Weights; block: number },
): (name: BlockTensorName) => Value {
  const constant = constants(g, config, weights);
  return (name) => constant(`h.${block}.${name}`);
}

/** x (M, D) -> qkv (M, 3D). */
export function qkvProgram(config: GptConfig, weights: Weights, block: number): Graph {
  const g = new GraphBuilder(`block ${block} qkv`);
  const tensor = blockConstants(g, config, { weights, block });
  const x = g.input('x', ['M', config.emb_dim]);
  const n1 = layerNorm(g, x, { weight: tensor('ln_1.weight'), bias: tensor('ln_1.bias') });
  const bias = config.qkv_bias ? tensor('attn.c_attn.bias') : null;
  g.output('qkv', linear(g, n1, { weight: tensor('attn.c_attn.weight'), bias }));
  return g.build();
}

/** Query rows of one run of `attend`, at the least and at the most: see there. */
export const ATTEND_ROWS_MIN = 2;
export const ATTEND_ROWS_MAX = 16;

/**
 * q (R, D), keys (H, P, W), values (H, W, P), mask (R, P) of 0 and -Infinity -> context (R, D). No weights: one program
 * serves every block. The caches are the left sides of both products, so they are streamed and never repacked; the sums over
 * P then run in one order for 2 to 16 query rows, while a single row takes another kernel and more rows another blocking.
 */
export function attendProgram(config: GptConfig): Graph {
  const { emb_dim: D, n_heads: H } = config;
  const g = new GraphBuilder('attend');
  const q = g.input('q', ['R', D]);
  const keys = g.input('keys', [H, 'P', D / H]);
  const values = g.input('values', [H, D / H, 'P']);
  const mask = g.input('mask', ['R', 'P']);
  const columns = g.node('Transpose', [g.node('Reshape', [q, g.integers([-1, H, D / H])])], { perm: [1, 2, 0] });
  const scores = product(g, keys, { b: columns, factor: 1 / Math.sqrt(D / H) });
  const rows = g.node('Add', [g.node('Transpose', [scores], { perm: [0, 2, 1] }), mask]);
  const attended = g.node('Transpose', [g.node('Softmax', [rows], { axis: -1 })], { perm: [0, 2, 1] });
  const context = g.node('Transpose', [product(g, values, { b: attended })], { perm: [2, 0, 1] });
  g.output('context', g.node('Reshape', [context, g.integers([-1, D])]));
  return g.build();
}

/** x (M, D) before the block, context (M, D) -> y (M, D). */
export function feedProgram(config: GptConfig, weights: Weights, block: number): Graph {
  const g = new GraphBuilder(`block ${block} feed`);
  const tensor = blockConstants(g, config, { weights, block });
  const x = g.input('x', ['M', config.emb_dim]);
  const context = g.input('context', ['M', config.emb_dim]);
  const mixed = linear(g, context, { weight: tensor('attn.c_proj.weight'), bias: tensor('attn.c_proj.bias') });
  const a = g.node('Add', [x, mixed]);
  const n2 = layerNorm(g, a, { weight: tensor('ln_2.weight'), bias: tensor('ln_2.bias') });
  const u = linear(g, n2, { weight: tensor('mlp.c_fc.weight'), bias: tensor('mlp.c_fc.bias') });
  const fed = linear(g, gelu(g, u), { weight: tensor('mlp.c_proj.weight'), bias: tensor('mlp.c_proj.bias') });
  g.output('y', g.node('Add', [a, fed]));
  return g.build();
}

/** x (M, D) -> logits (M, V). */
export function logitsProgram(config: GptConfig, weights: Weights): Graph {
  const g = new GraphBuilder('logits');
  const constant = constants(g, config, weights);
  const [normWeight, normBias, projection] = headTensorNames(config);
  const x = g.input('x', ['M', config.emb_dim]);
  const normalized = layerNorm(g, x, { weight: constant(normWeight), bias: constant(normBias) });
  g.output('logits', g.node('Gemm', [normalized, constant(projection)], { transB: 1 }));
  return g.build();
}
