// The self-test's model is a checkpoint with the reference run's first weights.

import { initialTensors } from '../model/init.ts';
import type { TensorChunk } from '../workers/store/messages.ts';
import type { NewCheckpoint } from '../daemon/models/checkpoints.ts';
import { REFERENCE_CONFIG, REFERENCE_SEED } from './selftest-reference.ts';

/** Returns the checkpoint of a new model of that name. */
export const referenceModel = (name: string): NewCheckpoint => ({
  model: name,
  step: 0,
  jobId: 'selftest',
  config: REFERENCE_CONFIG,
  meta: { fingerprint: 'selftest', loss: null, valLoss: null },
  newModel: { name, config: REFERENCE_CONFIG, tokenizer: null },
});

/** Returns the first weights, one chunk for each tensor: no tensor is larger than a chunk. */
export const referenceChunks = (): TensorChunk[] =>
  [...initialTensors(REFERENCE_CONFIG, { seed: REFERENCE_SEED, scheme: 'torch' })].map(({ name, data }) => ({
    tensor: name,
    part: 'w',
    offsetBytes: 0,
    bytes: new Uint8Array(data.buffer),
  }));

// eslint-disable-next-line @typescript-eslint/require-await -- other callers of the same consumer await threads.
export async function* inTurn(chunks: readonly TensorChunk[]): AsyncGenerator<readonly TensorChunk[]> {
  yield chunks;
}
