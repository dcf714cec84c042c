// How many bytes a model needs, before anything is allocated: Node's own limits do not count typed arrays, so admission by
// estimate is the only guard.

import type { GptConfig } from '../../model/config.ts';
import { countBytes, countMatrices, countParameters } from '../../model/count.ts';
import { GptdError } from '../../model/errors.ts';
import type { Quantization } from '../../model/programs/quantize.ts';
import { CACHE_STEP, capacityFor, formatBytes, passesAtOnce } from '../../model/programs/serving.ts';
import { DTYPE_BYTES, type TableOptions } from '../../model/tensors.ts';

/** The bytes of one number in an activation. */
const FLOAT_BYTES = DTYPE_BYTES.float32;
/** The number of micro-batches whose activations may be held at once, per stage of the pipeline. */
export const FLIGHTS_PER_STAGE = 2;

/**
 * The bytes of a model that all stages together may set aside while a checkpoint is written and training goes on; beyond that the
 * optimizer waits for the store. This is enough for the whole state of 124M that a store of 50 MB/s has left after the first
 * step.
 */
export const SNAPSHOT_BYTES_MAX = 7 * 2 ** 28;
export interface TrainingShape {
  readonly batchSize: number;
  readonly microBatchSize: number;
  readonly contextLength: number;
  readonly stageCount: number;
}

export const weightsBytes = (config: GptConfig): number => countBytes(config).all;

/** The bytes of AdamW's two moments of each tensor that is trained. */
export const optimizerBytes = (config: GptConfig, options: TableOptions = {}): number =>
  2 * countBytes(config, options).trained;

/** The bytes of one position's keys and values. */
const positionBytes = ({ n_layers: L, emb_dim: D }: GptConfig): number => 2 * L * D * FLOAT_BYTES;

/** The part of the budget that the caches of one model's sequences may take, beyond one full context. */
const CACHE_SHARE = 1 / 8;

/** Positions that the sequences of a served model may hold in their caches, together: at least one full context. */
export function cachedTokensMax(config: GptConfig, budgetBytes: number): number {
  const positions = Math.floor((budgetBytes * CACHE_SHARE) / positionBytes(config) / CACHE_STEP) * CACHE_STEP;
  return Math.max(capacityFor(config.context_length), positions);
}

/**
 * Returns the bytes of the packed weights, twice where rows may pass at once, of the embedding table beside the packed head, and
 * of one sequence's full cache.
 */
export function servingBytes(config: GptConfig, quantization: Quantization | null = null): number {
  const cache = config.context_length * positionBytes(config);
  const { total: matrices, head } = countMatrices(config);
  const rest = countParameters(config).total_params - matrices + (config.tie_weights ? head : 0);
  const copies = passesAtOnce(config, quantization) ? 2 : 1;
  return copies * formatBytes(matrices, quantization) + rest * FLOAT_BYTES + cache;
}

/** V8 lets arrays that nobody needs any more pile up to about this size. */
const UNCOLLECTED_BYTES = 128 << 20;

/**
 * Returns what loading takes beside that until it is over: the largest matrix as it is read; the weights of the largest program
 * as it is served twice, which the engine copies before it packs them; and all matrices where they are made, until they are
 * stored, or where two programs take them.
 */
export function loadingBytes(config: GptConfig, quantization: Quantization | null = null): number {
  const { total, largest } = countMatrices(config);
  const all = formatBytes(total, quantization);
  const isTwice = passesAtOnce(config, quantization);
  const program = isTwice ? all : formatBytes(largest, quantization);
  const held = isTwice || quantization !== null ? all : 0;
  return largest * FLOAT_BYTES + 2 * program + held + UNCOLLECTED_BYTES;
}

/** Returns the most bytes that a model takes from when its loading begins. */
export const servingPeakBytes = (config: GptConfig, quantization: Quantization | null): number =>
  servingBytes(config, quantization) + loadingBytes(config, quantization);

/**
 * Returns the bytes of weights, gradients, moments, what is set aside while a checkpoint is written, activations in flight, and
 * the head's logits beside the softmax of each flight.
 */
export function trainingBytes(config: GptConfig, shape: TrainingShape, options: TableOptions = {}): number {
  const { n_layers: L, emb_dim: D, n_heads: H, vocab_size: V } = config;
  const { microBatchSize: B, contextLength: T, stageCount } = shape;
  const flights = Math.min(shape.batchSize / B, FLIGHTS_PER_STAGE * stageCount);
  // x, dy, qkv, context, a, u and the row gradients are 28 D a row with what a program needs; the attention's probabilities H T.
  const activations = flights * L * B * T * (28 * D + H * T);
  const logits = (flights + 2) * B * T * V;
  const { all: weights, trained: gradients } = countBytes(config, options);
  const moments = 2 * gradients;
  const snapshot = Math.min(weights + moments, SNAPSHOT_BYTES_MAX);
  return weights + gradients + moments + snapshot + (activations + logits) * FLOAT_BYTES;
}

/** Returns the bytes of the weights, the rows in flight and the head's logits. Moments and gradients stay untouched. */
export function evaluationBytes(config: GptConfig, shape: TrainingShape): number {
  const { emb_dim: D, n_heads: H, vocab_size: V } = config;
  const { microBatchSize: B, contextLength: T, stageCount } = shape;
  const flights = Math.min(shape.batchSize / B, FLIGHTS_PER_STAGE * stageCount);
  const activations = B * T * (flights * D + stageCount * (12 * D + 2 * H * T));
  return weightsBytes(config) + (activations + 3 * B * T * V) * FLOAT_BYTES;
}

/** The bytes that a job or a loaded model is going to take. */
export interface MemoryNeed {
  readonly bytes: number;
  /** Who takes it, as a message begins. */
  readonly what: string;
  /** What to do when there is not so much: the end of the message, after both figures. */
  readonly advice?: () => string;
}

/** Throws `out_of_memory`, with both figures, when the need exceeds the budget. */
export function admit({ bytes, what, advice }: MemoryNeed, budgetBytes: number): void {
  if (bytes <= budgetBytes) return;
  const end = advice?.() ?? ': take a smaller model, micro-batch or context.';
  throw new GptdError(
    'out_of_memory',
    `${what} needs about ${gigabytes(bytes)} and the daemon may use ${gigabytes(budgetBytes)}${end}`,
  );
}

/** What a training takes; the advice is the largest micro-batch that fits into the budget, or that none does. */
export function trainingNeed(
  config: GptConfig,
  shape: TrainingShape,
  { model, budgetBytes }: { readonly model: string; readonly budgetBytes: number },
): MemoryNeed {
  const advice = (): string => {
    const sizes = Array.from({ length: shape.microBatchSize - 1 }, (_, i) => shape.microBatchSize - 1 - i);
    const fits = (size: number): boolean => trainingBytes(config, { ...shape, microBatchSize: size }) <= budgetBytes;
    const fitting = sizes.find((size) => shape.batchSize % size === 0 && fits(size));
    return fitting === undefined
      ? `. Not even micro-batches of one sequence of ${shape.contextLength} tokens fit: take a smaller model or --context-length.`
      : `. The largest micro-batch that fits is ${fitting}: --micro-batch-size ${fitting}.`;
  };
  return {
    bytes: trainingBytes(config, shape),
    what: `Training ${model} with micro-batches of ${shape.microBatchSize}`,
    advice,
  };
}

const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(1)} GB`;
