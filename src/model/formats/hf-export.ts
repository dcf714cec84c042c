// The files beside exported weights: the config.json that Hugging Face's classes and transformers.js read, and the files of the
// tokenizer. What these classes have no field for stands under `gptd`, so that an import finds the model as it was.

import { BYTE_CHARACTERS, END_OF_TEXT_TOKEN } from '../text/bpe.ts';
import { gpt2Vocabulary } from '../text/bpe-files.ts';
import type { GptConfig } from '../config.ts';
import { LAYER_NORM_EPSILON } from '../programs/layers.ts';
import type { BpeVocabulary, TokenizerSpec } from '../text/tokenizer.ts';

export interface ExportedModel {
  readonly config: GptConfig;
  readonly tokenizer: TokenizerSpec | null;
  /** The step of the checkpoint. */
  readonly step: number;
  /** The digest of the checkpoint's weights. */
  readonly digest: string;
}

/** Returns the id that ends a text, or null when the vocabulary has no such id. */
export const endOfTextOf = (tokenizer: TokenizerSpec | null): number | null => {
  if (tokenizer?.type === 'gpt2') return 50256;
  if (tokenizer?.type !== 'bpe') return null;
  return tokenizer.special.find((id) => tokenizer.tokens[id] === END_OF_TEXT_TOKEN) ?? null;
};

export function huggingFaceConfig(
  { config, tokenizer, step, digest }: ExportedModel,
  { dtype }: { dtype: 'float32' | 'float16' },
): Record<string, unknown> {
  const end = endOfTextOf(tokenizer);
  return {
    architectures: ['GPT2LMHeadModel'],
    model_type: 'gpt2',
    vocab_size: config.vocab_size,
    n_positions: config.context_length,
    n_ctx: config.context_length,
    n_embd: config.emb_dim,
    n_head: config.n_heads,
    n_layer: config.n_layers,
    n_inner: null,
    activation_function: 'gelu_new',
    resid_pdrop: config.drop_rate,
    embd_pdrop: config.drop_rate,
    attn_pdrop: config.drop_rate,
    layer_norm_epsilon: LAYER_NORM_EPSILON,
    initializer_range: 0.02,
    scale_attn_weights: true,
    use_cache: true,
    tie_word_embeddings: config.tie_weights,
    torch_dtype: dtype,
    // GPT-2's defaults are ids that a smaller vocabulary does not have.
    bos_token_id: end,
    eos_token_id: end,
    gptd: {
      qkv_bias: config.qkv_bias,
      step,
      digest,
      ...(tokenizer === null || tokenizer.type === 'bpe' ? {} : { tokenizer }),
    },
  };
}

/** Resolves to the tokenizer's files by name. A model that knows token ids only has none. */
export async function tokenizerFiles({ config, tokenizer }: ExportedModel): Promise<ReadonlyMap<string, string>> {
  const files = new Map<string, string>();
  if (tokenizer === null) return files;
  const json = (name: string, value: unknown): unknown => files.set(name, `${JSON.stringify(value, null, 2)}\n`);
  const settings = {
    model_max_length: config.context_length,
    clean_up_tokenization_spaces: false,
    add_prefix_space: false,
  };
  if (tokenizer.type === 'char') {
    const tokens = Array.from(tokenizer.alphabet);
    json('tokenizer.json', tokenizerJson({ tokens, merges: [], special: [] }, { byteLevel: false }));
    json('tokenizer_config.json', { ...settings, tokenizer_class: 'PreTrainedTokenizerFast' });
    return files;
  }
  const vocabulary = await byteLevelVocabulary(tokenizer);
  json('tokenizer.json', tokenizerJson(vocabulary, { byteLevel: true }));
  if (tokenizer.type === 'byte') {
    json('tokenizer_config.json', { ...settings, tokenizer_class: 'PreTrainedTokenizerFast' });
    return files;
  }
  const end = endOfTextOf(tokenizer) === null ? {} : { bos_token: END_OF_TEXT_TOKEN, eos_token: END_OF_TEXT_TOKEN };
  json('tokenizer_config.json', {
    ...settings,
    tokenizer_class: 'GPT2Tokenizer',
    ...end,
    unk_token: END_OF_TEXT_TOKEN,
  });
  json('vocab.json', idsOf(vocabulary.tokens));
  files.set('merges.txt', `#version: 0.2\n${vocabulary.merges.join('\n')}\n`);
  return files;
}

/** Resolves to the vocabulary of a tokenizer that works on bytes. Plain bytes are a vocabulary without merges. */
export async function byteLevelVocabulary(
  tokenizer: Exclude<TokenizerSpec, { readonly type: 'char' }>,
): Promise<BpeVocabulary> {
  switch (tokenizer.type) {
    case 'gpt2':
      return await gpt2Vocabulary();
    case 'byte':
      return { tokens: BYTE_CHARACTERS, merges: [], special: [] };
    case 'bpe':
      return tokenizer;
    default:
      return tokenizer satisfies never;
  }
}

const idsOf = (tokens: readonly (string | null)[]): Record<string, number> =>
  Object.fromEntries(tokens.flatMap((token, id) => (token === null ? [] : [[token, id]])));

function tokenizerJson(
  { tokens, merges, special }: BpeVocabulary,
  { byteLevel }: { byteLevel: boolean },
): Record<string, unknown> {
  const bytes = { type: 'ByteLevel', add_prefix_space: false, trim_offsets: true, use_regex: true };
  return {
    version: '1.0',
    truncation: null,
    padding: null,
    added_tokens: special.map((id) => ({
      id,
      content: tokens[id],
      single_word: false,
      lstrip: false,
      rstrip: false,
      normalized: false,
      special: true,
    })),
    normalizer: null,
    pre_tokenizer: byteLevel ? bytes : null,
    post_processor: null,
    decoder: byteLevel ? bytes : { type: 'Fuse' },
    model: {
      type: 'BPE',
      dropout: null,
      unk_token: null,
      continuing_subword_prefix: null,
      end_of_word_suffix: null,
      fuse_unk: false,
      byte_fallback: false,
      ignore_merges: false,
      vocab: idsOf(tokens),
      merges,
    },
  };
}
