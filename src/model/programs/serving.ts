// The programs that generate tokens. Weights are constants, so that the engine packs them once. The rows of all running
// sequences go through `qkv`, `feed` and `logits` together, while attention reads each sequence's own cache. Splitting a block at
// attention keeps the cache in JavaScript and out of the programs' outputs. `pass` does not split the blocks; it is for steps
// whose rows attend in one product. The programs of training are in block.ts and head.ts.
// A twin is a second copy of a row that fills up a number of rows; its result is not used.
// Letters: M rows, U of them without twins, K query rows that attended before, N sequences side by side, R query rows of each,
// D width, H heads, W = D/H, P cached positions (capacity), V vocabulary.

import { assert } from '../errors.ts';
import type { GptConfig } from '../config.ts';
import { countMatrices } from '../count.ts';
import { afterAttention, beforeAttention, blockForward, headForward, type BlockLayers } from './forward.ts';
import { GraphBuilder, MICROSOFT, type Graph, type Value } from './graph.ts';
import { product, productTransposedB } from './layers.ts';
import { logitOutputs } from './head.ts';
import {
  BLOCK_SIZE,
  quantize,
  quantizedBytes,
  type Quantization,
  type QuantizedMatrix,
  type QuantizedSource,
} from './quantize.ts';
import { blockTensorName, DTYPE_BYTES, projectionName, tensorTable } from '../tensors.ts';

/** The capacity of every cache is a multiple of this, so that the bits of attention do not depend on the capacity. */
export const CACHE_STEP = 64;

/** Returns the capacity, in positions, of a cache that must hold `length` positions. */
export const capacityFor = (length: number): number => Math.ceil(length / CACHE_STEP) * CACHE_STEP;

/**
 * The threads that compute one program of a wide model: one core cannot read weights as fast as the machine's memory gives them.
 */
export const SERVING_THREADS = 2;

/** The tensors of the blocks and the head, by their names in the table. Each is read when a program with it is built. */
export interface Weights {
  get(name: string): Float32Array | undefined;
  /** Returns a quantized matrix, where the caller keeps such matrices. Without this method the tensor is quantized here. */
  quantized?(name: string, shape: QuantizedSource): QuantizedMatrix;
}

/** Returns the same weights, but reads each tensor and each matrix only once, for programs that share them. */
export function askedOnce(weights: Weights): Weights {
  const tensors = new Map<string, Float32Array | undefined>();
  const matrices = new Map<string, QuantizedMatrix>();
  const once = <T>(known: Map<string, T>, name: string, ask: () => T): T => {
    if (!known.has(name)) known.set(name, ask());
    return known.get(name)!;
  };
  return {
    get: (name) => once(tensors, name, () => weights.get(name)),
    ...(weights.quantized === undefined
      ? {}
      : { quantized: (name, shape) => once(matrices, name, () => weights.quantized!(name, shape)) }),
  };
}

/** Returns the bytes that so many weights of a matrix take, in float32 or quantized. */
export function formatBytes(weightCount: number, quantization: Quantization | null): number {
  if (quantization === null) return weightCount * DTYPE_BYTES.float32;
  return Math.ceil((weightCount * quantizedBytes({ quantization, K: BLOCK_SIZE, N: 1 })) / BLOCK_SIZE);
}

/**
 * The most bytes that a model's matrices may take once more for passProgram. A model of 124M parameters is below this limit when
 * it is quantized, and above it in float32.
 */
const PASS_BYTES_MAX = 256 << 20;

/** Whether stages compile passProgram besides the other programs. It has its own copy of the weights. */
export const passesAtOnce = (config: GptConfig, quantization: Quantization | null): boolean =>
  formatBytes(countMatrices(config).total, quantization) <= PASS_BYTES_MAX;

interface ServingOptions {
  /** How the matrices are kept; null is float32. Norms, biases and embeddings are never quantized. */
  readonly quantization: Quantization | null;
}

/** Emits one program with the weights of a model as constants. */
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

  /** Returns the layers of one block. */
  block(block: number): BlockLayers {
    return {
      g: this.g,
      tensor: (name) => this.#constant(blockTensorName(block, name)),
      dense: (x, layer) => {
        const bias = blockTensorName(block, `${layer}.bias`);
        return this.#linear(x, {
          weight: blockTensorName(block, `${layer}.weight`),
          bias: this.#shapes.has(bias) ? bias : null,
        });
      },
    };
  }

  /** Ends the program with logitOutputs of x (M, D). */
  logits(x: Value, config: GptConfig): void {
    const layers = {
      g: this.g,
      tensor: (name: string) => this.#constant(name),
      project: (rows: Value) => this.#linear(rows, { weight: projectionName(config), bias: null, transposed: true }),
    };
    logitOutputs(this.g, headForward(layers, x).logits);
  }

  #constant(name: string): Value {
    return this.g.constant(...this.#tensor(name));
  }

  /**
   * x (M, K) times the matrix `weight` (K, N), or (N, K) when `transposed`, plus `bias` (N) -> (M, N). With a quantization, M
   * must be even.
   */
  #linear(
    x: Value,
    { weight, bias, transposed = false }: { weight: string; bias: string | null; transposed?: boolean },
  ): Value {
    const added = bias === null ? [] : [this.#constant(bias)];
    if (this.#quantization === null) {
      return this.g.node('Gemm', [x, this.#constant(weight), ...added], transposed ? { transB: 1 } : {});
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
      // Accuracy level 4 rounds rows to int8, block by block, so that products are sums of integers. The engine takes two rows at
      // a time, and the last row of an odd number would have other bits.
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

/** x (M, D) -> qkv (M, 3D). */
export function qkvProgram(
  config: GptConfig,
  weights: Weights,
  { block, quantization }: { block: number } & ServingOptions,
): Graph {
  const b = new ServingBuilder(`block ${block} qkv`, { config, weights, quantization });
  b.g.output('qkv', beforeAttention(b.block(block), b.g.input('x', ['M', config.emb_dim])));
  return b.g.build();
}

/**
 * The rest of a block: attention of the last group of query rows (see attendProgram), then everything after attention.
 * x (M, D) is the input of the block. context (K, D) is the result of attention of the groups before the last one. rows (M) says
 * which of the K + N R attended rows belongs to each row of x, which leaves twins out. -> y (M, D); with `next` also qkv (M, 3D)
 * of the next block, which saves a run.
 */
export function feedProgram(
  config: GptConfig,
  weights: Weights,
  { block, next, quantization }: { block: number; next: boolean } & ServingOptions,
): Graph {
  const b = new ServingBuilder(`block ${block} feed`, { config, weights, quantization });
  const { g } = b;
  const x = g.input('x', ['M', config.emb_dim]);
  const before = g.input('context', ['K', config.emb_dim]);
  const rows = g.input('rows', ['M'], 'int64');
  const attended = emitAttention(g, attentionInputs(g, { config, suffix: '' }), config);
  const all = g.node('Concat', [before, attended], { axis: 0 });
  const { y } = afterAttention(b.block(block), x, g.node('Gather', [all, rows], { axis: 0 }));
  g.output('y', y);
  if (next) g.output('qkv', beforeAttention(b.block(block + 1), y));
  return g.build();
}

/** The names of a block's cache in passProgram, before and after the rows are written. Both names are bound to one memory. */
export const passCacheNames = (block: number): Readonly<Record<'keys' | 'values', readonly [string, string]>> => ({
  keys: [`keys_${block}`, `keys_${block}_written`],
  values: [`values_${block}`, `values_${block}_written`],
});

/**
 * All blocks of a stage, and with `head` the logits, for one group of query rows (see attendProgram). The bits are those of
 * qkvProgram, feedProgram and logitsProgram one after the other, but this is one run, in which a second thread is woken once.
 *
 * The inputs are x (M, D); fresh (U), the rows of x that are not twins; queries (N, R), the fresh row of each query row; rows
 * (M), the place of each row of x among the N R query rows; keyPlaces (U, H, 3) and valuePlaces (U, H, W, 4), the places in the
 * caches of the fresh rows' keys and values, which are written before attention reads the caches; mask; and every block's caches
 * (see passCacheNames). -> The same caches, and y (M, D) or logitOutputs of the M rows. Where an output has the memory of an
 * input, the engine writes in place.
 */
export function passProgram(
  config: GptConfig,
  weights: Weights,
  {
    firstBlock,
    endBlock,
    head,
    quantization,
  }: { firstBlock: number; endBlock: number; head: boolean } & ServingOptions,
): Graph {
  const { emb_dim: D, n_heads: H } = config;
  const W = D / H;
  const b = new ServingBuilder(`pass ${firstBlock} to ${endBlock}`, { config, weights, quantization });
  const { g } = b;
  let x = g.input('x', ['M', D]);
  const fresh = g.input('fresh', ['U'], 'int64');
  const queries = g.input('queries', ['N', 'R'], 'int64');
  const rows = g.input('rows', ['M'], 'int64');
  const keyPlaces = g.input('keyPlaces', ['U', H, 3], 'int64');
  const valuePlaces = g.input('valuePlaces', ['U', H, W, 4], 'int64');
  const mask = g.input('mask', ['N', 1, 'R', 'P']);
  const attend = (qkv: Value, block: number): Value => {
    const names = passCacheNames(block - firstBlock);
    const own = g.node('Gather', [qkv, fresh], { axis: 0 });
    const [asking, k, v] = g.nodes('Split', [own, g.integers([D, D, D])], 3, { axis: 1 });
    const q = g.node('Gather', [asking, queries], { axis: 0 });
    const put = (cache: Value, places: Value, entries: Value): Value =>
      g.node('ScatterND', [cache, places, g.node('Reshape', [entries, g.integers([-1, H, W])])]);
    const keys = put(g.input(names.keys[0], ['N', H, 'P', W]), keyPlaces, k);
    const values = put(g.input(names.values[0], ['N', H, W, 'P']), valuePlaces, v);
    g.output(names.keys[1], keys);
    g.output(names.values[1], values);
    return g.node('Gather', [emitAttention(g, { q, keys, values, mask }, config), rows], { axis: 0 });
  };
  for (let block = firstBlock; block < endBlock; block++) {
    x = blockForward(b.block(block), x, (qkv) => attend(qkv, block)).y;
  }
  if (head) b.logits(x, config);
  else g.output('y', x);
  return g.build();
}

/** The fewest and the most query rows of one group of attention: see attendProgram. */
export const ATTEND_ROWS_MIN = 2;
export const ATTEND_ROWS_MAX = 16;

/** The most query rows that wideAttendProgram takes. The scores of more rows would not fit in the core's cache. */
export const ATTEND_WIDE_ROWS_MAX = 128;
/** The engine adds up to 1024 products in one sum where a result has at most so many columns, and fewer where it has more. */
const ONE_SUM_COLUMNS = 16;
/** The engine adds up to so many products in one sum, whatever the shape of the result. */
const ONE_SUM_TERMS = 128;

/** Whether wideAttendProgram gives the bits of attendProgram, which depends on how the engine cuts sums at a head's width. */
export function attendsWide({ emb_dim: D, n_heads: H }: GptConfig): boolean {
  const W = D / H;
  return W % ONE_SUM_COLUMNS === 0 && W <= ONE_SUM_TERMS;
}

/**
 * Attention of many query rows of one sequence, for a piece of a prompt: q (1, R, D), keys (1, H, C, W), values (1, H, W, C),
 * mask (1, 1, R, P) -> context (R, D), with the bits of attendProgram. With `whole` P is C. Otherwise the rows look only at the
 * first P positions, and the input `positions` (1) holds P. The rows are the left sides of the products, so softmax reads what
 * the first product writes and no score is transposed. The engine repacks the caches, which only pays for many rows. Values are
 * taken 16 columns at a time, so that the sums over P are not cut where attendProgram does not cut them.
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
 * (N R, D). The program has no weights, so it serves every block. The caches are the left sides of both products, so they are
 * streamed and never repacked. The sums over P then run in one order for 2 to 16 query rows, while a single row would take
 * another kernel and more rows another blocking.
 */
export function attendProgram(config: GptConfig, groups: number): Graph {
  const g = new GraphBuilder(`attend ${groups}`);
  for (let i = 0; i < groups; i++) {
    g.output(`context_${i}`, emitAttention(g, attentionInputs(g, { config, suffix: `_${i}` }), config));
  }
  return g.build();
}

/** The inputs of one group's attention. */
interface AttentionInputs {
  readonly q: Value;
  readonly keys: Value;
  readonly values: Value;
  readonly mask: Value;
}

/** Declares the inputs of one group's attention, each name with the suffix. */
function attentionInputs(g: GraphBuilder, { config, suffix }: { config: GptConfig; suffix: string }): AttentionInputs {
  const { emb_dim: D, n_heads: H } = config;
  const [N, R, P] = [`N${suffix}`, `R${suffix}`, `P${suffix}`];
  return {
    q: g.input(`q${suffix}`, [N, R, D]),
    keys: g.input(`keys${suffix}`, [N, H, P, D / H]),
    values: g.input(`values${suffix}`, [N, H, D / H, P]),
    mask: g.input(`mask${suffix}`, [N, 1, R, P]),
  };
}

/** Emits the attention of one group: q, keys, values and mask -> context (N R, D). */
function emitAttention(g: GraphBuilder, { q, keys, values, mask }: AttentionInputs, config: GptConfig): Value {
  const { emb_dim: D, n_heads: H } = config;
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
  b.logits(b.g.input('x', ['M', config.emb_dim]), config);
  return b.g.build();
}
