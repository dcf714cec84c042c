// How many parameters a configuration has, kind by kind, how many elements its matrices have, and how many bytes its tensors
// take. All numbers come from the tensor table. One block stands for all blocks, so the cost does not depend on the depth.

import type { GptConfig } from './config.ts';
import {
  blockTensors,
  projectionName,
  tensorBytes,
  tensorTable,
  type TableOptions,
  type TensorSpec,
} from './tensors.ts';

/** The exact counts, under the names of `gptd params --json`. */
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
  /** This count is 0 when the weights are tied, because the matrix is counted once, as token_embeddings. */
  readonly output_projection: number;
  readonly total_params: number;
}

/** Counts the tensors of a checked configuration. */
export function countParameters(config: GptConfig): ParameterCount {
  const outside = outsideBlocks(config);
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

/** The elements of the matrices that rows are multiplied with. Each element is one multiply-add of a row. */
interface MatrixCount {
  /** The elements of one block's matrices. */
  readonly block: number;
  /** The elements of the head's projection, also where it is the token embedding. */
  readonly head: number;
  /** The elements of all blocks and the head. */
  readonly total: number;
  /** The elements of the largest matrix. */
  readonly largest: number;
}

export function countMatrices(config: GptConfig): MatrixCount {
  const sizes = blockTensors(config, 0)
    .filter(({ matrix }) => matrix)
    .map(({ size }) => size);
  const block = sizes.reduce((sum, size) => sum + size, 0);
  const head = sizeOf(outsideBlocks(config), projectionName(config));
  return { block, head, total: block * config.n_layers + head, largest: Math.max(head, ...sizes) };
}

/** Returns the bytes of all tensors, and of the tensors that training changes. */
export function countBytes(
  config: GptConfig,
  options: TableOptions = {},
): { readonly all: number; readonly trained: number } {
  const sum = (tensors: readonly TensorSpec[]): number =>
    tensors.reduce((bytes, tensor) => bytes + tensorBytes(tensor), 0);
  const isTrained = ({ trained }: TensorSpec): boolean => trained;
  const [outside, block] = [outsideBlocks(config), blockTensors(config, 0)];
  const all = sum(outside) + config.n_layers * sum(block);
  // One block cannot stand for all blocks where the caller says which tensors are trained.
  return { all, trained: options.isTrained === undefined ? all : sum(tensorTable(config, options).filter(isTrained)) };
}

const outsideBlocks = (config: GptConfig): TensorSpec[] => tensorTable({ ...config, n_layers: 0 });

const sizeOf = (tensors: readonly TensorSpec[], prefix: string): number =>
  tensors.reduce((sum, tensor) => (tensor.name.startsWith(prefix) ? sum + tensor.size : sum), 0);
