// This file says which windows of the data a step trains on. That is arithmetic on positions, so a resumed job has no reader to
// wind forward. T is the number of tokens of context. A window is T + 1 tokens, whose inputs and targets are shifted by one.

import { GptdError } from '../../model/errors.ts';
import { permute } from '../../model/random/permutation.ts';
import type { TrainSpec } from '../protocol/kinds.ts';

export interface Windows {
  readonly trainWindows: number;
  readonly validationWindows: number;
  /** The position of the first token of the validation part. */
  readonly validationStart: number;
  readonly stepsPerEpoch: number;
  /** Returns the starts of the windows in the batch of update `index`, which counts from 0 in this job. */
  batch(index: number): number[];
  /** Returns the starts of up to `count` windows, spread over the tokens of one split. */
  sample(split: 'train' | 'validation', count: number): number[];
}

/**
 * Splits `tokenCount` tokens by position: the last `valSplit` of them are the validation part. Throws `invalid_spec` when either
 * part is too short for what the spec asks of it.
 */
export function planWindows(
  spec: Pick<TrainSpec, 'batchSize' | 'stride' | 'shuffle' | 'valSplit' | 'seed'>,
  { tokenCount, contextLength: T }: { tokenCount: number; contextLength: number },
): Windows {
  const { batchSize, shuffle, valSplit, seed } = spec;
  const stride = spec.stride ?? T;
  const trainTokens = tokenCount - Math.floor(tokenCount * valSplit);
  const windowsIn = (tokens: number, step: number): number => Math.max(0, Math.floor((tokens - T - 1) / step) + 1);
  const trainWindows = windowsIn(trainTokens, stride);
  const validationWindows = windowsIn(tokenCount - trainTokens, T);
  const stepsPerEpoch = Math.floor(trainWindows / batchSize);
  if (stepsPerEpoch < 1) {
    throw new GptdError(
      'invalid_spec',
      `The data is too short: ${trainTokens} training tokens make ${trainWindows} windows of ${T} + 1 tokens at stride ${stride}, and a batch needs ${batchSize}. Give more text, or a smaller --context-length, --batch-size or --stride.`,
    );
  }
  if (valSplit > 0 && validationWindows < 1) {
    throw new GptdError(
      'invalid_spec',
      `The data is too short for --val-split ${valSplit}: ${tokenCount - trainTokens} validation tokens are less than one window of ${T} + 1. Give more text, or --val-split 0.`,
    );
  }
  return {
    trainWindows,
    validationWindows,
    validationStart: trainTokens,
    stepsPerEpoch,
    batch(index) {
      const epoch = Math.floor(index / stepsPerEpoch);
      const first = (index % stepsPerEpoch) * batchSize;
      return Array.from({ length: batchSize }, (_, i) => {
        const window = shuffle ? permute(first + i, { n: trainWindows, seed, epoch }) : first + i;
        return window * stride;
      });
    },
    sample(split, count) {
      const [windows, step, origin] =
        split === 'train' ? [trainWindows, stride, 0] : [validationWindows, T, trainTokens];
      const taken = Math.min(count, windows);
      return Array.from({ length: taken }, (_, i) => origin + Math.floor((i * windows) / taken) * step);
    },
  };
}
