// The one ordered table of a GPT's tensors: name, shape, data type, initializer, decayed or not, trained or not. Counting, allocation, sharding,
// checkpoints, import and export all read this table and nothing else. Names and layouts are those of Hugging Face's GPT-2:
// matrices are (in, out), q, k and v lie side by side in c_attn. Letters: V vocabulary, C context, D width.

import type { GptConfig } from './config.ts';

/**
 * How a tensor begins. `fanIn` is the input width of the torch Linear that the tensor belongs to; `residual` marks the two
 * projections that GPT-2's scheme scales by 1/sqrt(2 n_layers).
 */
type Initializer =
  | { readonly type: 'ones' }
  | { readonly type: 'zeros' }
  | { readonly type: 'embedding' }
  | { readonly type: 'linearWeight'; readonly fanIn: number; readonly residual: boolean }
  | { readonly type: 'linearBias'; readonly fanIn: number };

/** Where a tensor lives: with the embeddings, in block `block`, or with the final norm and the head. */
type TensorPlace = 'embedding' | 'block' | 'head';

/** Bytes of an element, by the type of a tensor's data. */
export const DTYPE_BYTES = { float32: 4 } as const;

export interface TensorSpec {
  readonly name: string;
  readonly shape: readonly number[];
  readonly size: number;
  readonly dtype: keyof typeof DTYPE_BYTES;
  readonly initializer: Initializer;
  /** Two dimensions or more: weight decay applies under `--decay matrices`. */
  readonly matrix: boolean;
  /** Whether training changes the tensor: only then it has a gradient and moments. */
  readonly trained: boolean;
  readonly place: TensorPlace;
  /** Index of the block, -1 outside the blocks. */
  readonly block: number;
}

export interface TableOptions {
  /** Which tensors training changes, by their names in the table; without it, all of them. */
  readonly isTrained?: (name: string) => boolean;
}

/** Bytes of a tensor's data. */
export const tensorBytes = ({ size, dtype }: Pick<TensorSpec, 'size' | 'dtype'>): number => size * DTYPE_BYTES[dtype];

interface Row {
  readonly shape: readonly number[];
  readonly initializer: Initializer;
}

const ONES: Initializer = { type: 'ones' };
const ZEROS: Initializer = { type: 'zeros' };
const weight = (fanIn: number, residual = false): Initializer => ({ type: 'linearWeight', fanIn, residual });
const bias = (fanIn: number): Initializer => ({ type: 'linearBias', fanIn });

/** Width of the rows between the feed-forward's two layers. */
export const feedForwardWidth = ({ emb_dim: D }: GptConfig): number => 4 * D;

/** One block's tensors in table order, by their names without the `h.N.` prefix. */
function blockRows(config: GptConfig) {
  const D = config.emb_dim;
  const F = feedForwardWidth(config);
  return {
    'ln_1.weight': { shape: [D], initializer: ONES },
    'ln_1.bias': { shape: [D], initializer: ZEROS },
    'attn.c_attn.weight': { shape: [D, 3 * D], initializer: weight(D) },
    ...(config.qkv_bias ? { 'attn.c_attn.bias': { shape: [3 * D], initializer: bias(D) } } : {}),
    'attn.c_proj.weight': { shape: [D, D], initializer: weight(D, true) },
    'attn.c_proj.bias': { shape: [D], initializer: bias(D) },
    'ln_2.weight': { shape: [D], initializer: ONES },
    'ln_2.bias': { shape: [D], initializer: ZEROS },
    'mlp.c_fc.weight': { shape: [D, F], initializer: weight(D) },
    'mlp.c_fc.bias': { shape: [F], initializer: bias(D) },
    'mlp.c_proj.weight': { shape: [F, D], initializer: weight(F, true) },
    'mlp.c_proj.bias': { shape: [D], initializer: bias(F) },
  } satisfies Record<string, Row>;
}

/** A block's tensor without the `h.N.` prefix. */
export type BlockTensorName = keyof ReturnType<typeof blockRows>;
type LayerOf<Name> = Name extends `${infer Layer}.weight` ? Layer : never;
/** What a block's tensors belong to: their names without `.weight` and `.bias`. */
export type BlockLayerName = LayerOf<BlockTensorName>;

/** A block's tensor as the table has it. */
export const blockTensorName = (block: number, name: BlockTensorName): string => `h.${block}.${name}`;

const blockEntries = (config: GptConfig): [BlockTensorName, Row][] =>
  Object.entries(blockRows(config)) as [BlockTensorName, Row][];

const blockSpec = (
  [name, row]: readonly [BlockTensorName, Row],
  where: { readonly block: number } & TableOptions,
): TensorSpec => spec(blockTensorName(where.block, name), row, { place: 'block', ...where });

/** The tensors of block `block` in table order. */
export const blockTensors = (config: GptConfig, block: number): TensorSpec[] =>
  blockEntries(config).map((entry) => blockSpec(entry, { block }));

/** Those of the first block by their names without the prefix, in table order: all blocks have the same shapes. */
export const blockTable = (config: GptConfig): ReadonlyMap<BlockTensorName, TensorSpec> =>
  new Map(blockEntries(config).map((entry) => [entry[0], blockSpec(entry, { block: 0 })]));

/** The matrix that the logits are made with, (V, D): the token embedding when tied. */
export const projectionName = ({ tie_weights }: GptConfig): 'wte.weight' | 'lm_head.weight' =>
  tie_weights ? 'wte.weight' : 'lm_head.weight';

/** Every tensor of the model, in table order. */
export function tensorTable(config: GptConfig, options: TableOptions = {}): TensorSpec[] {
  const { vocab_size: V, context_length: C, emb_dim: D } = config;
  const embedding = (name: string, rowCount: number): TensorSpec =>
    spec(name, { shape: [rowCount, D], initializer: { type: 'embedding' } }, { place: 'embedding', ...options });
  const head = (name: string, row: Row): TensorSpec => spec(name, row, { place: 'head', ...options });
  const inBlock = blockEntries(config);
  return [
    embedding('wte.weight', V),
    embedding('wpe.weight', C),
    ...Array.from({ length: config.n_layers }, (_, block) =>
      inBlock.map((entry) => blockSpec(entry, { block, ...options })),
    ).flat(),
    head('ln_f.weight', { shape: [D], initializer: ONES }),
    head('ln_f.bias', { shape: [D], initializer: ZEROS }),
    ...(config.tie_weights ? [] : [head('lm_head.weight', { shape: [V, D], initializer: weight(D) })]),
  ];
}

function spec(
  name: string,
  { shape, initializer }: Row,
  {
    place,
    block = -1,
    isTrained = () => true,
  }: { readonly place: TensorPlace; readonly block?: number } & TableOptions,
): TensorSpec {
  const size = shape.reduce((product, length) => product * length, 1);
  const [matrix, trained] = [shape.length > 1, isTrained(name)];
  return { name, shape, size, dtype: 'float32', initializer, matrix, trained, place, block };
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
