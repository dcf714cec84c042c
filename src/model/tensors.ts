// The one ordered table of a GPT's tensors: name, shape, initializer, decayed or not. Counting, allocation, sharding,
// checkpoints, import and export all read this table and nothing else. Names and layouts are those of Hugging Face's GPT-2:
// matrices are (in, out), q, k and v lie side by side in c_attn. Letters: V vocabulary, C context, D width.

import type { GptConfig } from './config.ts';

/**
 * How a tensor begins. `fanIn` is the input width of the torch Linear that the tensor belongs to; `residual` marks the two
 * projections that GPT-2's scheme scales by 1/sqrt(2 n_layers).
 */
export type Initializer =
  | { readonly type: 'ones' }
  | { readonly type: 'zeros' }
  | { readonly type: 'embedding' }
  | { readonly type: 'linearWeight'; readonly fanIn: number; readonly residual: boolean }
  | { readonly type: 'linearBias'; readonly fanIn: number };

/** Where a tensor lives: with the embeddings, in block `block`, or with the final norm and the head. */
export type TensorPlace = 'embedding' | 'block' | 'head';

export interface TensorSpec {
  readonly name: string;
  readonly shape: readonly number[];
  readonly size: number;
  readonly initializer: Initializer;
  /** Two dimensions or more: weight decay applies under `--decay matrices`. */
  readonly matrix: boolean;
  readonly place: TensorPlace;
  /** Index of the block, -1 outside the blocks. */
  readonly block: number;
}

/** Names of one block's tensors without the `h.N.` prefix, in table order. */
export const BLOCK_TENSOR_NAMES = [
  'ln_1.weight',
  'ln_1.bias',
  'attn.c_attn.weight',
  'attn.c_attn.bias',
  'attn.c_proj.weight',
  'attn.c_proj.bias',
  'ln_2.weight',
  'ln_2.bias',
  'mlp.c_fc.weight',
  'mlp.c_fc.bias',
  'mlp.c_proj.weight',
  'mlp.c_proj.bias',
] as const;
export type BlockTensorName = (typeof BLOCK_TENSOR_NAMES)[number];

function spec(
  name: string,
  shape: readonly number[],
  initializer: Initializer,
  where: { readonly place: TensorPlace; readonly block?: number },
): TensorSpec {
  const size = shape.reduce((product, length) => product * length, 1);
  return { name, shape, size, initializer, matrix: shape.length > 1, place: where.place, block: where.block ?? -1 };
}

/** The tensors of block `block` in table order. */
export function blockTensors(config: GptConfig, block: number): TensorSpec[] {
  const D = config.emb_dim;
  const where = { place: 'block', block } as const;
  const weight = (fanIn: number, residual = false): Initializer => ({ type: 'linearWeight', fanIn, residual });
  const bias = (fanIn: number): Initializer => ({ type: 'linearBias', fanIn });
  const at = (name: BlockTensorName): string => `h.${block}.${name}`;
  return [
    spec(at('ln_1.weight'), [D], { type: 'ones' }, where),
    spec(at('ln_1.bias'), [D], { type: 'zeros' }, where),
    spec(at('attn.c_attn.weight'), [D, 3 * D], weight(D), where),
    ...(config.qkv_bias ? [spec(at('attn.c_attn.bias'), [3 * D], bias(D), where)] : []),
    spec(at('attn.c_proj.weight'), [D, D], weight(D, true), where),
    spec(at('attn.c_proj.bias'), [D], bias(D), where),
    spec(at('ln_2.weight'), [D], { type: 'ones' }, where),
    spec(at('ln_2.bias'), [D], { type: 'zeros' }, where),
    spec(at('mlp.c_fc.weight'), [D, 4 * D], weight(D), where),
    spec(at('mlp.c_fc.bias'), [4 * D], bias(D), where),
    spec(at('mlp.c_proj.weight'), [4 * D, D], weight(4 * D, true), where),
    spec(at('mlp.c_proj.bias'), [D], bias(4 * D), where),
  ];
}

/** Every tensor of the model, in table order. */
export function tensorTable(config: GptConfig): TensorSpec[] {
  const { vocab_size: V, context_length: C, emb_dim: D } = config;
  return [
    spec('wte.weight', [V, D], { type: 'embedding' }, { place: 'embedding' }),
    spec('wpe.weight', [C, D], { type: 'embedding' }, { place: 'embedding' }),
    ...Array.from({ length: config.n_layers }, (_, block) => blockTensors(config, block)).flat(),
    spec('ln_f.weight', [D], { type: 'ones' }, { place: 'head' }),
    spec('ln_f.bias', [D], { type: 'zeros' }, { place: 'head' }),
    ...(config.tie_weights
      ? []
      : [spec('lm_head.weight', [V, D], { type: 'linearWeight', fanIn: D, residual: false }, { place: 'head' })]),
  ];
}

/** Whether a stage that holds blocks [firstBlock, endBlock), and perhaps the embeddings or the head, holds the tensor. */
export function ownsTensor(
  stage: { readonly firstBlock: number; readonly endBlock: number; readonly embeds: boolean; readonly head: boolean },
  { place, block }: TensorSpec,
): boolean {
  if (place === 'embedding') return stage.embeds;
  if (place === 'head') return stage.head;
  return block >= stage.firstBlock && block < stage.endBlock;
}
