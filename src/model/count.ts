// How many parameters a configuration has, part by part, read off the tensor table. One block stands for all of them,
// so the cost does not depend on the depth. It is not about bytes: those follow from how the daemon runs a model.

import type { GptConfig } from './config.ts';
import { blockTensors, tensorTable, type TensorSpec } from './tensors.ts';

/** Exact counts under the names of `gptd params --json`. */
export interface ParameterCount {
  readonly token_embeddings: number;
  readonly position_embeddings: number;
  readonly embedding_total: number;
  readonly mha_per_block: number;
  readonly ff_per_block: number;
  readonly layernorm_per_block: number;
  readonly params_per_block: number;
  readonly transformer_blocks_total: number;
  readonly final_layernorm: number;
  /** 0 when tied: the matrix is counted once, as token_embeddings. */
  readonly output_projection: number;
  readonly total_params: number;
}

/** Counts the tensors of a checked configuration. */
export function countParameters(config: GptConfig): ParameterCount {
  const outside = tensorTable({ ...config, n_layers: 0 });
  const block = blockTensors(config, 0);
  const token_embeddings = sizeOf(outside, 'wte.');
  const position_embeddings = sizeOf(outside, 'wpe.');
  const embedding_total = token_embeddings + position_embeddings;
  const params_per_block = sizeOf(block, '');
  const transformer_blocks_total = params_per_block * config.n_layers;
  return {
    token_embeddings,
    position_embeddings,
    embedding_total,
    mha_per_block: sizeOf(block, 'h.0.attn.'),
    ff_per_block: sizeOf(block, 'h.0.mlp.'),
    layernorm_per_block: sizeOf(block, 'h.0.ln_'),
    params_per_block,
    transformer_blocks_total,
    final_layernorm: sizeOf(outside, 'ln_f.'),
    output_projection: sizeOf(outside, 'lm_head.'),
    total_params: sizeOf(outside, '') + transformer_blocks_total,
  };
}

const sizeOf = (tensors: readonly TensorSpec[], prefix: string): number =>
  tensors.reduce((sum, tensor) => (tensor.name.startsWith(prefix) ? sum + tensor.size : sum), 0);
