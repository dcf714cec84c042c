// The dropout masks of a micro-batch. A mask is a pure function of the seed, the step and where its elements lie in the batch,
// so every stage draws the masks that it needs itself.

import { dropoutMask, PURPOSE, type Purpose } from '../../model/random/philox.ts';
import type { Tensors } from '../engines/engine.ts';
import type { MicroBatch, TrainSetup } from './messages.ts';

/**
 * Draws once for each element. The stream of a purpose runs over the blocks, the batch's sequences, and each sequence's elements.
 */
function draw(
  { seed, batchSize, config }: TrainSetup,
  { micro, purpose, block, perSequence }: { micro: MicroBatch; purpose: Purpose; block: number; perSequence: number },
): Uint8Array {
  const mask = new Uint8Array(micro.starts.length * perSequence);
  const index = (block * batchSize + micro.firstSequence) * perSequence;
  dropoutMask(mask, { seed, purpose, step: micro.step, index, rate: config.drop_rate });
  return mask;
}

/** Returns the mask of the embeddings' rows (B*T, D). */
export function embeddingMask(setup: TrainSetup, micro: MicroBatch): Uint8Array {
  const perSequence = setup.contextLength * setup.config.emb_dim;
  return draw(setup, { micro, purpose: PURPOSE.dropoutEmbedding, block: 0, perSequence });
}

/** Returns the BLOCK_MASKS of one block; none when the configuration drops nothing. */
export function blockMasks(
  setup: TrainSetup,
  { micro, block }: { micro: MicroBatch; block: number },
): Record<string, Uint8Array> {
  const { config, contextLength: T } = setup;
  const { drop_rate: rate, emb_dim: D, n_heads: H } = config;
  if (rate === 0) return {};
  const at = (purpose: Purpose, perSequence: number): Uint8Array => draw(setup, { micro, purpose, block, perSequence });
  return {
    maskProbabilities: at(PURPOSE.dropoutAttention, H * T * T),
    maskAttention: at(PURPOSE.dropoutAttentionResidual, T * D),
    maskFeedForward: at(PURPOSE.dropoutFeedForwardResidual, T * D),
  };
}

export function maskTensors(setup: TrainSetup, masks: Readonly<Record<string, Uint8Array>>): Tensors {
  const { config, contextLength: T, microBatchSize: B } = setup;
  const dims = (name: string): number[] =>
    name === 'maskProbabilities' ? [B, config.n_heads, T, T] : [B * T, config.emb_dim];
  return Object.fromEntries(Object.entries(masks).map(([name, data]) => [name, { data, dims: dims(name) }]));
}
