// The programs that generate tokens. Weights are constants, so that the engine packs them once; rows of all running
// sequences go through `qkv`, `feed` and `logits` together, attention over each one's own cache. Splitting a block at attention
// keeps the cache in JavaScript and out of the programs' outputs. Training programs are in block.ts and head.ts.
// Letters: M rows, K query rows that attended before, N sequences side by side, R query rows of each, D width, H heads,
// W = D/H, P cached positions (capacity), V vocabulary.

import { assert } from './errors.ts';
import type { GptConfig } from './config.ts';
import { GraphBuilder, MICROSOFT, type Graph, type Value } from './graph.ts';
import { gelu, layerNorm, product, productTransposedB } from './layers.ts';
import { headTensorNames, logitOutputs } from './head.ts';
import { BLOCK_SIZE, quantize, type Quantization, type QuantizedMatrix, type QuantizedSource } from './quantize.ts';
import { tensorTable, type BlockTensorName } from './tensors.ts';

/** A cache's capacity is a multiple of this: then attention's bits do not depend on the capacity. */
export const CACHE_STEP = 64;

/** Positions that a cache of `length` takes. */
export const capacityFor = (length: number): number => Math.ceil(length / CACHE_STEP) * CACHE_STEP;

/** Threads that compute one program of a wide model: reading its weights takes the machine's memory, not one core's. */
export const SERVING_THREADS = 2;

/** The tensors of the blocks and the head, by their names in the table; each is asked for when it is compiled in. */
export interface Weights {
  get(name: string): Float32Array | undefined;
  /** A matrix in few bits, where somebody keeps those; else it is made of the tensor. */
  quantized?(name: string, shape: QuantizedSource): QuantizedMatrix;
}

export interface ServingOptions {
  /** How the matrices are kept; null is float32. Norms, biases and embeddings are never quantized. */
  readonly quantization: Quantization | null;
}

/** Emits one program over the weights of a configuration. */
class ServingBuilder {
  readonly g: GraphBuilder;
  readonly #shapes: ReadonlyMap<string, readonly number[]>;
  readonly #weights: Weights;
  readonly #quantization: Quantization | null;

  constructor(
    name: string,
    { config, weights, quantization }: { config: GptConfig; weights: Weights } & ServingOptions,
  ) {
    this.g = new GraphBuilder(name);
    this.#shapes = new Map(tensorTable(config).map((tensor) => [tensor.name, tensor.shape]));
    this.#weights = weights;
    this.#quantization = quantization;
  }

  constant(name: string): Value {
    return this.g.constant(...this.#tensor(name));
  }

  /** x (M, K) times the matrix `weight` (K, N), or (N, K) when `transposed`, plus `bias` (N) -> (M, N). Quantized: M is even. */
  linear(
    x: Value,
    { weight, bias, transposed = false }: { weight: string; bias: string | null; transposed?: boolean },
  ): Value {
    const added = bias === null ? [] : [this.constant(bias)];
    if (this.#quantization === null) {
      return this.g.node('Gemm', [x, this.constant(weight), ...added], transposed ? { transB: 1 } : {});
    }
    const [rows, columns] = this.#shapes.get(weight)!;
    const [K, N] = transposed ? [columns, rows] : [rows, columns];
    const matrix = this.#matrix(weight, { K, N, transposed, quantization: this.#quantization });
    const S = Math.ceil(K / BLOCK_SIZE);
    const zeroPoints = matrix.bits === 4 ? [this.g.constant(matrix.zeroPoints, [matrix.zeroPoints.length])] : [];
    const y = this.g.node(
      'MatMulNBits',
      [
        x,
        this.g.constant(matrix.data, [N, S, (BLOCK_SIZE * matrix.bits) / 8]),
        this.g.constant(matrix.scales, [N * S]),
        ...zeroPoints,
      ],
      // Accuracy level 4: rows are rounded to int8, block by block, so that products are sums of integers. They are taken two
      // at a time; the last one of an odd number would have other bits.
      { K, N, bits: matrix.bits, block_size: BLOCK_SIZE, accuracy_level: 4 },
      { domain: MICROSOFT },
    );
    return bias === null ? y : this.g.node('Add', [y, ...added]);
  }

  #matrix(name: string, shape: QuantizedSource): QuantizedMatrix {
    return this.#weights.quantized?.(name, shape) ?? quantize(this.#tensor(name)[0], shape);
  }

  #tensor(name: string): [data: Float32Array, shape: readonly number[]] {
    const data = this.#weights.get(name);
    const shape = this.#shapes.get(name);
    assert(data !== undefined && shape !== undefined, `no weights for ${name}`);
    return [data, shape];
  }
}

const blockName =
  (block: number) =>
  (name: BlockTensorName): string =>
    `h.${block}.${name}`;

function emitQkv(b: ServingBuilder, x: Value, { config, block }: { config: GptConfig; block: number }): void {
  const name = blockName(block);
  const n1 = layerNorm(b.g, x, { weight: b.constant(name('ln_1.weight')), bias: b.constant(name('ln_1.bias')) });
  const bias = config.qkv_bias ? name('attn.c_attn.bias') : null;
  b.g.output('qkv', b.linear(n1, { weight: name('attn.c_attn.weight'), bias }));
}

/** x (M, D) -> qkv (M, 3D). */
export function qkvProgram(
  config: GptConfig,
  weights: Weights,
  { block, quantization }: { block: number } & ServingOptions,
): Graph {
  const b = new ServingBuilder(`block ${block} qkv`, { config, weights, quantization });
  emitQkv(b, b.g.input('x', ['M', config.emb_dim]), { config, block });
  return b.g.build();
}

/**
 * The rest of a block: attention of the last group of query rows (see attendProgram; context (K, D) is what the groups before
 * it have attended to), then everything behind attention. x (M, D) before the block, rows (M): where each row's attention
 * is among the K + N R of all groups, so that twins are left out -> y (M, D); with `next` also the next block's qkv (M, 3D): a run less.
 */
export function feedProgram(
  config: GptConfig,
  weights: Weights,
  { block, next, quantization }: { block: number; next: boolean } & ServingOptions,
): Graph {
  const b = new ServingBuilder(`block ${block} feed`, { config, weights, quantization });
  const { g } = b;
  const name = blockName(block);
  const x = g.input('x', ['M', config.emb_dim]);
  const before = g.input('context', ['K', config.emb_dim]);
  const rows = g.input('rows', ['M'], 'int64');
  const all = g.node('Concat', [before, emitAttention(g, { config, suffix: '' })], { axis: 0 });
  const context = g.node('Gather', [all, rows], { axis: 0 });
  const mixed = b.linear(context, { weight: name('attn.c_proj.weight'), bias: name('attn.c_proj.bias') });
  const a = g.node('Add', [x, mixed]);
  const n2 = layerNorm(g, a, { weight: b.constant(name('ln_2.weight')), bias: b.constant(name('ln_2.bias')) });
  const u = b.linear(n2, { weight: name('mlp.c_fc.weight'), bias: name('mlp.c_fc.bias') });
  const fed = b.linear(gelu(g, u), { weight: name('mlp.c_proj.weight'), bias: name('mlp.c_proj.bias') });
  const y = g.node('Add', [a, fed]);
  g.output('y', y);
  if (next) emitQkv(b, y, { config, block: block + 1 });
  return g.build();
}

/** Query rows of one group of attention, at the least and at the most: see attendProgram. */
export const ATTEND_ROWS_MIN = 2;
export const ATTEND_ROWS_MAX = 16;

/** Query rows that wideAttendProgram takes, at the most; more would make scores that leave the core's cache. */
export const ATTEND_WIDE_ROWS_MAX = 128;
/** The engine sums up to 1024 products in one go where a result has so many columns at the most, and fewer where it has more. */
const ONE_SUM_COLUMNS = 16;
/** Up to so many products are one sum whatever the result's shape. */
const ONE_SUM_TERMS = 128;

/** Whether wideAttendProgram gives the bits of attendProgram: a head's width is what the engine's sums are to be cut by. */
export function attendsWide({ emb_dim: D, n_heads: H }: GptConfig): boolean {
  const W = D / H;
  return W % ONE_SUM_COLUMNS === 0 && W <= ONE_SUM_TERMS;
}

/**
 * Attention of many query rows of one sequence, a piece of a prompt: q (1, R, D), keys (1, H, C, W), values (1, H, W, C), mask
 * (1, 1, R, P) -> context (R, D), the bits of attendProgram. With `whole` P is C; else the rows look at the first P positions only,
 * which `positions` (1) says too. The rows are the left sides, so softmax reads what the first product writes and no score is
 * transposed; the caches are repacked, which many rows pay for. Values are taken 16 columns at a time, so that the sums over P
 * are not cut where attendProgram does not cut them.
 */
export function wideAttendProgram(config: GptConfig, { whole }: { whole: boolean }): Graph {
  const { emb_dim: D, n_heads: H } = config;
  const W = D / H;
  assert(attendsWide(config), `heads of ${W} do not attend wide`);
  const g = new GraphBuilder(whole ? 'attend wide' : 'attend wide, first positions');
  const q = g.input('q', [1, 'R', D]);
  const caches = [g.input('keys', [1, H, 'C', W]), g.input('values', [1, H, W, 'C'])];
  const mask = g.input('mask', [1, 1, 'R', 'P']);
  const end = whole ? null : g.input('positions', [1], 'int64');
  const [keys, values] = caches.map((cache, i) =>
    end === null ? cache : g.node('Slice', [cache, g.integers([0]), end, g.integers([2 + i])]),
  );
  const heads = g.node('Transpose', [g.node('Reshape', [q, g.integers([0, 0, H, W])])], { perm: [0, 2, 1, 3] });
  const scores = productTransposedB(g, heads, { b: keys, factor: 1 / Math.sqrt(W) });
  const attended = g.node('Softmax', [g.node('Add', [scores, mask])], { axis: -1 });
  const parts = g.node('Reshape', [values, g.integers([H, W / ONE_SUM_COLUMNS, ONE_SUM_COLUMNS, -1])]);
  const shared = g.node('Reshape', [attended, g.integers([H, 1, -1, 0])]);
  const context = g.node('Transpose', [productTransposedB(g, shared, { b: parts })], { perm: [2, 0, 1, 3] });
  g.output('context', g.node('Reshape', [context, g.integers([-1, D])]));
  return g.build();
}

/**
 * Attention of `groups` independent groups, each of R query rows for each of N sequences whose caches are side by side: for
 * group i, q_i (N, R, D), keys_i (N, H, P, W), values_i (N, H, W, P), mask_i (N, 1, R, P) of 0 and -Infinity -> context_i
 * (N R, D). No weights: one program serves every block. The caches are the left sides of both products, so they are streamed
 * and never repacked; the sums over P then run in one order for 2 to 16 query rows, while a single row takes another kernel and
 * more rows another blocking.
 */
export function attendProgram(config: GptConfig, groups: number): Graph {
  const g = new GraphBuilder(`attend ${groups}`);
  for (let i = 0; i < groups; i++) g.output(`context_${i}`, emitAttention(g, { config, suffix: `_${i}` }));
  return g.build();
}

/** One group's attention; its inputs are q, keys, values and mask, each with the suffix. */
function emitAttention(g: GraphBuilder, { config, suffix }: { config: GptConfig; suffix: string }): Value {
  const { emb_dim: D, n_heads: H } = config;
  const [N, R, P] = [`N${suffix}`, `R${suffix}`, `P${suffix}`];
  const q = g.input(`q${suffix}`, [N, R, D]);
  const keys = g.input(`keys${suffix}`, [N, H, P, D / H]);
  const values = g.input(`values${suffix}`, [N, H, D / H, P]);
  const mask = g.input(`mask${suffix}`, [N, 1, R, P]);
  const heads = g.node('Reshape', [q, g.integers([0, 0, H, D / H])]);
  const columns = g.node('Transpose', [heads], { perm: [0, 2, 3, 1] });
  const scores = product(g, keys, { b: columns, factor: 1 / Math.sqrt(D / H) });
  const masked = g.node('Add', [g.node('Transpose', [scores], { perm: [0, 1, 3, 2] }), mask]);
  const attended = g.node('Transpose', [g.node('Softmax', [masked], { axis: -1 })], { perm: [0, 1, 3, 2] });
  const context = g.node('Transpose', [product(g, values, { b: attended })], { perm: [0, 3, 1, 2] });
  return g.node('Reshape', [context, g.integers([-1, D])]);
}

/** x (M, D) -> logitOutputs of the M rows. */
export function logitsProgram(config: GptConfig, weights: Weights, { quantization }: ServingOptions): Graph {
  const b = new ServingBuilder('logits', { config, weights, quantization });
  const [normWeight, normBias, projection] = headTensorNames(config);
  const x = b.g.input('x', ['M', config.emb_dim]);
  const normalized = layerNorm(b.g, x, { weight: b.constant(normWeight), bias: b.constant(normBias) });
  logitOutputs(b.g, b.linear(normalized, { weight: projection, bias: null, transposed: true }));
  return b.g.build();
}
