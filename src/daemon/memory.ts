// How many bytes a model needs, before anything is allocated: Node's own limits do not count typed arrays, so admission by
// estimate is the only guard.

import type { GptConfig } from '../model/config.ts';
import { countParameters } from '../model/count.ts';
import { GptdError } from '../model/errors.ts';
import { SNAPSHOT_BYTES_MAX } from './snapshot.ts';

const FLOAT_BYTES = 4;
/** Micro-batches whose activations may be held at once, per stage of the pipeline. */
export const FLIGHTS_PER_STAGE = 2;

export interface TrainingShape {
  readonly batchSize: number;
  readonly microBatchSize: number;
  readonly contextLength: number;
  readonly stageCount: number;
}

export const weightsBytes = (config: GptConfig): number => countParameters(config).total_params * FLOAT_BYTES;

/** AdamW's two moments. */
export const optimizerBytes = (config: GptConfig): number => 2 * weightsBytes(config);

/** Packed weights, the embedding table beside the packed head, and one sequence's full cache. */
export function servingBytes(config: GptConfig): number {
  const { n_layers: L, emb_dim: D, context_length: C, vocab_size: V, tie_weights: tied } = config;
  return weightsBytes(config) + (2 * L * C * D + (tied ? V * D : 0)) * FLOAT_BYTES;
}

/**
 * Weights, gradients, moments, what is set aside while a checkpoint is written, activations in flight, and the head's logits
 * beside the softmax of each flight.
 */
export function trainingBytes(config: GptConfig, shape: TrainingShape): number {
  const { n_layers: L, emb_dim: D, n_heads: H, vocab_size: V } = config;
  const { microBatchSize: B, contextLength: T, stageCount } = shape;
  const flights = Math.min(shape.batchSize / B, FLIGHTS_PER_STAGE * stageCount);
  // x, dy, qkv, context, a, u and the row gradients are 28 D a row with what a program needs; attention weights H T.
  const activations = flights * L * B * T * (28 * D + H * T);
  const logits = (flights + 2) * B * T * V;
  const snapshot = Math.min(weightsBytes(config) + optimizerBytes(config), SNAPSHOT_BYTES_MAX);
  return 4 * weightsBytes(config) + snapshot + (activations + logits) * FLOAT_BYTES;
}

/** Weights, the rows in flight and the head's logits; moments and gradients stay untouched. */
export function evaluationBytes(config: GptConfig, shape: TrainingShape): number {
  const { emb_dim: D, n_heads: H, vocab_size: V } = config;
  const { microBatchSize: B, contextLength: T, stageCount } = shape;
  const flights = Math.min(shape.batchSize / B, FLIGHTS_PER_STAGE * stageCount);
  const activations = B * T * (flights * D + stageCount * (12 * D + 2 * H * T));
  return weightsBytes(config) + (activations + 3 * B * T * V) * FLOAT_BYTES;
}

/** Throws `out_of_memory`, with both figures, when `bytes` exceed the budget. */
export function admit(bytes: number, { budgetBytes, what }: { budgetBytes: number; what: string }): void {
  if (bytes <= budgetBytes) return;
  throw new GptdError(
    'out_of_memory',
    `${what} needs about ${gigabytes(bytes)} and the daemon may use ${gigabytes(budgetBytes)}: take a smaller model, micro-batch or context.`,
  );
}

/**
 * Admits a training. Throws `out_of_memory` with the estimate and the largest micro-batch that would fit, or says that none does.
 */
export function admitTraining(
  config: GptConfig,
  shape: TrainingShape,
  { budgetBytes, what }: { budgetBytes: number; what: string },
): void {
  const bytes = trainingBytes(config, shape);
  if (bytes <= budgetBytes) return;
  const sizes = Array.from({ length: shape.microBatchSize - 1 }, (_, i) => shape.microBatchSize - 1 - i);
  const fitting = sizes.find(
    (size) => shape.batchSize % size === 0 && trainingBytes(config, { ...shape, microBatchSize: size }) <= budgetBytes,
  );
  const advice =
    fitting === undefined
      ? `Not even micro-batches of one sequence of ${shape.contextLength} tokens fit: take a smaller model or --context-length.`
      : `The largest micro-batch that fits is ${fitting}: --micro-batch-size ${fitting}.`;
  throw new GptdError(
    'out_of_memory',
    `${what} with micro-batches of ${shape.microBatchSize} needs about ${gigabytes(bytes)} and the daemon may use ${gigabytes(budgetBytes)}. ${advice}`,
  );
}

const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(1)} GB`;
