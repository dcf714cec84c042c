// The shape of a training's work is how long its sequences are and how a batch is cut into micro-batches. Both shape the sums, so
// they follow from the spec and the model alone, never from the number of workers.

import { GptdError } from '../../model/errors.ts';
import { decayStepsOf } from '../../model/schedule.ts';
import type { TrainSpec } from '../protocol/kinds.ts';

/** Throws `invalid_spec` for a micro-batch or context that does not fit. */
export function trainingShape(
  spec: Pick<TrainSpec, 'batchSize' | 'contextLength' | 'microBatchSize'>,
  modelContext: number,
): { readonly contextLength: number; readonly microBatchSize: number } {
  const { batchSize } = spec;
  const contextLength = spec.contextLength ?? modelContext;
  if (contextLength > modelContext) {
    throw new GptdError(
      'invalid_spec',
      `contextLength is ${contextLength}: the model's context holds ${modelContext} tokens.`,
    );
  }
  const microBatchSize = spec.microBatchSize ?? defaultMicroBatchSize(batchSize, contextLength);
  if (batchSize % microBatchSize !== 0) {
    throw new GptdError('invalid_spec', `microBatchSize ${microBatchSize} does not divide batchSize ${batchSize}.`);
  }
  return { contextLength, microBatchSize };
}

/** A micro-batch with fewer rows than this makes the matrix products slower. */
const MICRO_BATCH_ROWS = 256;
const MICRO_BATCHES_MIN = 4;

/** Returns the largest divisor of the batch that leaves four micro-batches, but no smaller one than what makes 256 rows. */
function defaultMicroBatchSize(batchSize: number, contextLength: number): number {
  const divisors = Array.from({ length: batchSize }, (_, i) => i + 1).filter((size) => batchSize % size === 0);
  const enough = divisors.find((size) => size * contextLength >= MICRO_BATCH_ROWS) ?? batchSize;
  const four = divisors.filter((size) => batchSize / size >= MICRO_BATCHES_MIN).at(-1) ?? 1;
  return Math.max(enough, four);
}

/** Throws `invalid_spec` when warm-up and decay do not fit into `steps`. */
export function checkSchedule(spec: TrainSpec, steps: number): void {
  const { schedule, warmupSteps, decaySteps } = spec;
  if (decaySteps !== undefined && schedule !== 'wsd') {
    throw new GptdError(
      'invalid_spec',
      `decaySteps is ${decaySteps} and the schedule ${schedule}: only wsd has a decay of its own length.`,
    );
  }
  const decay = decayStepsOf({ steps, decaySteps });
  if (schedule === 'wsd' && warmupSteps + decay > steps) {
    throw new GptdError(
      'invalid_spec',
      `warmupSteps ${warmupSteps} and decaySteps ${decay} are more than the ${steps} steps of the run.`,
    );
  }
}
