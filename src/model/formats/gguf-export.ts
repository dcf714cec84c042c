// A GPT-2 as llama.cpp knows it: the names of our tensors there, and the tokenizer as llama.cpp's byte-level BPE. The matrices of
// llama.cpp are (out, in), so ours are transposed. Its q, k and v always have a bias.

import { printable } from '../text/bpe.ts';
import { GptdError } from '../errors.ts';
import { GGML_TYPES, type GgmlType, type GgufTensor, type GgufValue } from './gguf.ts';
import { byteLevelVocabulary, endOfTextOf, type ExportedModel } from './hf-export.ts';
import { LAYER_NORM_EPSILON } from '../programs/layers.ts';
import { feedForwardWidth, tensorTable, type BlockLayerName } from '../tensors.ts';
import type { BpeVocabulary, TokenizerSpec } from '../text/tokenizer.ts';

interface GgufExportTensor extends GgufTensor {
  /** The tensor's name in our table, or null for a tensor of zeros. */
  readonly source: string | null;
  /** Whether the tensor is (in, out) in our table and (out, in) in the file. */
  readonly transposed: boolean;
}

/** The LLAMA_FTYPE of a file, by the type of its matrices. */
const FILE_TYPE: Readonly<Record<GgmlType, number>> = { f32: 0, f16: 1, q4_0: 2, q8_0: 7 };
/** The kinds of tokens: ordinary tokens, special tokens that stand for themselves, and ids without a token. */
const TOKEN_TYPE = { normal: 1, control: 3, unused: 5 } as const;

const OUTSIDE: Readonly<Record<string, string>> = {
  'wte.weight': 'token_embd.weight',
  'wpe.weight': 'position_embd.weight',
  'ln_f.weight': 'output_norm.weight',
  'ln_f.bias': 'output_norm.bias',
  'lm_head.weight': 'output.weight',
};
const IN_BLOCK: Readonly<Record<BlockLayerName, string>> = {
  ln_1: 'attn_norm',
  'attn.c_attn': 'attn_qkv',
  'attn.c_proj': 'attn_output',
  ln_2: 'ffn_norm',
  'mlp.c_fc': 'ffn_up',
  'mlp.c_proj': 'ffn_down',
};

/** Returns the tensors of the file in order. Throws `incompatible` when a row is not a whole number of the type's blocks. */
export function ggufTensors({ config }: ExportedModel, type: GgmlType): GgufExportTensor[] {
  const { blockValues } = GGML_TYPES[type];
  if (config.emb_dim % blockValues !== 0) {
    throw new GptdError(
      'incompatible',
      `${type} needs rows of whole blocks of ${blockValues} values, and emb_dim is ${config.emb_dim}: take f32 or f16.`,
    );
  }
  return tensorTable({ ...config, qkv_bias: true }).map(({ name, shape, matrix }) => {
    const inBlock = /^h\.(\d+)\.(.*)\.(weight|bias)$/.exec(name);
    const transposed = matrix && inBlock !== null;
    return {
      name:
        inBlock === null ? OUTSIDE[name] : `blk.${inBlock[1]}.${IN_BLOCK[inBlock[2] as BlockLayerName]}.${inBlock[3]}`,
      shape: transposed ? [...shape].reverse() : shape,
      // The position embedding stays in f32, as llama.cpp's own converter leaves it, because its rows are only added.
      type: matrix && name !== 'wpe.weight' ? type : 'f32',
      source: !config.qkv_bias && name.endsWith('.attn.c_attn.bias') ? null : name,
      transposed,
    };
  });
}

/** Resolves to the metadata of the file. `name` is the model's name. */
export async function ggufMetadata(
  model: ExportedModel,
  { name, type }: { name: string; type: GgmlType },
): Promise<[string, GgufValue][]> {
  const { config, tokenizer } = model;
  const uint32 = (value: number): GgufValue => ({ type: 'uint32', value });
  const string = (value: string): GgufValue => ({ type: 'string', value });
  return [
    ['general.architecture', string('gpt2')],
    ['general.name', string(name)],
    ['general.file_type', uint32(FILE_TYPE[type])],
    ['general.quantization_version', uint32(2)],
    ['gptd.digest', string(model.digest)],
    ['gptd.step', uint32(model.step)],
    ['gpt2.vocab_size', uint32(config.vocab_size)],
    ['gpt2.context_length', uint32(config.context_length)],
    ['gpt2.embedding_length', uint32(config.emb_dim)],
    ['gpt2.feed_forward_length', uint32(feedForwardWidth(config))],
    ['gpt2.block_count', uint32(config.n_layers)],
    ['gpt2.attention.head_count', uint32(config.n_heads)],
    ['gpt2.attention.layer_norm_epsilon', { type: 'float32', value: LAYER_NORM_EPSILON }],
    ...(tokenizer === null ? [noVocabulary] : await vocabularyMetadata(tokenizer, config.vocab_size)),
  ];
}

const noVocabulary: [string, GgufValue] = ['tokenizer.ggml.model', { type: 'string', value: 'no_vocab' }];

async function vocabularyMetadata(tokenizer: TokenizerSpec, vocabSize: number): Promise<[string, GgufValue][]> {
  const { tokens, merges, special } =
    tokenizer.type === 'char' ? charVocabulary(tokenizer.alphabet) : await byteLevelVocabulary(tokenizer);
  const specials = new Set(special);
  const ids = Array.from({ length: vocabSize }, (_, id) => id);
  const types = ids.map((id) => {
    if (specials.has(id)) return TOKEN_TYPE.control;
    return (tokens[id] ?? null) === null ? TOKEN_TYPE.unused : TOKEN_TYPE.normal;
  });
  const end = endOfTextOf(tokenizer);
  return [
    ['tokenizer.ggml.model', { type: 'string', value: 'gpt2' }],
    ['tokenizer.ggml.pre', { type: 'string', value: 'gpt-2' }],
    ['tokenizer.ggml.tokens', { type: 'strings', value: ids.map((id) => tokens[id] ?? `[UNUSED_${id}]`) }],
    ['tokenizer.ggml.token_type', { type: 'int32s', value: types }],
    ['tokenizer.ggml.merges', { type: 'strings', value: merges }],
    ['tokenizer.ggml.add_bos_token', { type: 'bool', value: false }],
    ...(['bos', 'eos', 'unknown'] as const).flatMap((name): [string, GgufValue][] =>
      end === null ? [] : [[`tokenizer.ggml.${name}_token_id`, { type: 'uint32', value: end }]],
    ),
  ];
}

/**
 * Returns characters as tokens of a byte-level BPE, in which the bytes of each character are merged from the left. The results of
 * merges on the way are not tokens. llama.cpp accepts that, because it looks up only what is left at the end.
 */
function charVocabulary(alphabet: string): BpeVocabulary {
  const tokens = Array.from(alphabet, (character) => printable(new TextEncoder().encode(character)));
  const merges = new Set<string>();
  for (const token of tokens) {
    for (let at = 1; at < token.length; at++) merges.add(`${token.slice(0, at)} ${token[at]}`);
  }
  return { tokens, merges: [...merges], special: [] };
}
