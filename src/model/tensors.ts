// The one ordered table of a GPT's tensors: name, shape, data type, initializer, and whether the tensor is decayed and trained.
// Counting, allocation, sharding, checkpoints, import and export all read this table and nothing else. Names and layouts are
// those of Hugging Face's GPT-2: matrices are (in, out), and q, k and v lie side by side in c_attn.
// Letters: V vocabulary, C context, D width.

import type { GptConfig } from './config.ts';

/**
 * How a tensor is initialized. `fanIn` is the input width of the torch Linear that the tensor belongs to. `residual` marks the
 * two projections that GPT-2's scheme scales by 1/sqrt(2 n_layers).
 */
type Initializer =
  | { readonly type: 'ones' }
  | { readonly type: 'zeros' }
  | { readonly type: 'embedding' }
  | { readonly type: 'linearWeight'; readonly fanIn: number; readonly residual: boolean }
  | { readonly type: 'linearBias'; readonly fanIn: number };

/** Where a tensor lives: with the embeddings, in block `block`, or with the final norm and the head. */
type TensorPlace = 'embedding' | 'block' | 'head';

/** The bytes of an element, by the type of a tensor's data. */
export const DTYPE_BYTES = { float32: 4 } as const;

export interface TensorSpec {
  readonly name: string;
  readonly shape: readonly number[];
  readonly size: number;
  readonly dtype: keyof typeof DTYPE_BYTES;
  readonly initializer: Initializer;
  /** Whether the tensor has two dimensions or more, so that weight decay applies under `--decay matrices`. */
  readonly matrix: boolean;
  /** Whether training changes the tensor. Only then does it have a gradient and moments. */
  readonly trained: boolean;
  readonly place: TensorPlace;
  /** The index of the block, or -1 outside the blocks. */
  readonly block: number;
}

export interface TableOptions {
  /** Tells by a tensor's name in the table whether training changes it. Without this function training changes all tensors. */
  readonly isTrained?: (name: string) => boolean;
}

/** Returns the bytes of a tensor's data. */
export const tensorBytes = ({ size, dtype }: Pick<TensorSpec, 'size' | 'dtype'>): number => size * DTYPE_BYTES[dtype];

interface Row {
  readonly shape: readonly number[];
  readonly initializer: Initializer;
}

const ONES: Initializer = { type: 'ones' };
const ZEROS: Initializer = { type: 'zeros' };
const weight = (fanIn: number, residual = false): Initializer => ({ type: 'linearWeight', fanIn, residual });
const bias = (fanIn: number): Initializer => ({ type: 'linearBias', fanIn });

/** Returns the width of the rows between the two layers of the feed-forward. */
export const feedForwardWidth = ({ emb_dim: D }: GptConfig): number => 4 * D;

/** Returns one block's tensors in table order, by their names without the `h.N.` prefix. */
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

/** The name of a block's tensor without the `h.N.` prefix. */
export type BlockTensorName = keyof ReturnType<typeof blockRows>;
type LayerOf<Name> = Name extends `${infer Layer}.weight` ? Layer : never;
/** The name of a layer of a block: the name of a tensor without `.weight` or `.bias`. */
export type BlockLayerName = LayerOf<BlockTensorName>;

/** Returns the name of a block's tensor in the table. */
export const blockTensorName = (block: number, name: BlockTensorName): string => `h.${block}.${name}`;

const blockEntries = (config: GptConfig): [BlockTensorName, Row][] =>
  Object.entries(blockRows(config)) as [BlockTensorName, Row][];

const blockSpec = (
  [name, row]: readonly [BlockTensorName, Row],
  where: { readonly block: number } & TableOptions,
): TensorSpec => spec(blockTensorName(where.block, name), row, { place: 'block', ...where });

/** Returns the tensors of block `block` in table order. */
export const blockTensors = (config: GptConfig, block: number): TensorSpec[] =>
  blockEntries(config).map((entry) => blockSpec(entry, { block }));

/** Returns the first block's tensors in table order, by their names without the prefix. All blocks have the same shapes. */
export const blockTable = (config: GptConfig): ReadonlyMap<BlockTensorName, TensorSpec> =>
  new Map(blockEntries(config).map((entry) => [entry[0], blockSpec(entry, { block: 0 })]));

/** Returns the name of the matrix (V, D) that makes the logits, which is the token embedding when the weights are tied. */
export const projectionName = ({ tie_weights }: GptConfig): 'wte.weight' | 'lm_head.weight' =>
  tie_weights ? 'wte.weight' : 'lm_head.weight';

/** Returns every tensor of the model, in table order. */
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
