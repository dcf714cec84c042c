// Which tokenizer a model gets, which one its data are read with, and whether it can encode and decode yet. No other file decides
// that. A model may have none: it knows token ids only.

import { GptdError } from '../errors.ts';
import { gpt2Vocabulary, isSameBpe } from './bpe-files.ts';
import { completeTokenizer, type StoredTokenizer } from './stored.ts';
import { BYTE_IDS, GPT2_IDS, type BpeVocabulary, type TokenizerSpec } from './tokenizer.ts';

/** What may be asked for by its name; a `bpe` comes with imported weights. */
type TokenizerName = Exclude<TokenizerSpec['type'], 'bpe'>;

/** What a model's tokenizer is called; null for a model that knows token ids only. */
export const tokenizerName = (stored: StoredTokenizer): TokenizerSpec['type'] | null => stored?.type ?? null;

/** The named tokenizer, or the one that the vocabulary suggests. Throws `invalid_spec` when the vocabulary is too small for it. */
export function newTokenizer(
  vocabSize: number,
  name: TokenizerName = suggestedName(vocabSize),
): Exclude<StoredTokenizer, null> {
  if (name === 'char') return { type: name, alphabet: null };
  const needed = name === 'gpt2' ? GPT2_IDS : BYTE_IDS;
  if (vocabSize < needed) {
    throw new GptdError(
      'invalid_spec',
      `The ${name} tokenizer has ${needed} ids and vocab_size is ${vocabSize}: take --vocab-size ${needed} or another tokenizer.`,
    );
  }
  return { type: name };
}

const suggestedName = (vocabSize: number): TokenizerName =>
  vocabSize >= GPT2_IDS ? 'gpt2' : vocabSize >= BYTE_IDS ? 'byte' : 'char';

export interface ImportedTokenizer {
  readonly vocabSize: number;
  readonly named: TokenizerName | undefined;
  /** What the files tell; null when they tell nothing, or one that is not known here. */
  readonly found: TokenizerSpec | null;
  /** Whether there is something to say about what they tell. */
  readonly isNoted: boolean;
}

/** The named tokenizer, else that of the files. Of files that tell nothing only GPT-2's vocabulary suggests one. */
export function importedTokenizer({ vocabSize, named, found, isNoted }: ImportedTokenizer): StoredTokenizer {
  if (named !== undefined) return newTokenizer(vocabSize, named);
  return found === null && !isNoted && vocabSize === GPT2_IDS ? newTokenizer(vocabSize) : found;
}

/** The tokenizer of a vocabulary that came with weights: GPT-2's own goes by its name. Throws `incompatible` when the model has fewer ids. */
export async function vocabularyTokenizer(vocabulary: BpeVocabulary, vocabSize: number): Promise<TokenizerSpec> {
  if (vocabulary.tokens.length > vocabSize) {
    throw new GptdError(
      'incompatible',
      `The vocabulary has ${vocabulary.tokens.length} ids and the model ${vocabSize}.`,
    );
  }
  return isSameBpe(vocabulary, await gpt2Vocabulary()) ? { type: 'gpt2' } : { type: 'bpe', ...vocabulary };
}

/**
 * What a model's data are read with: its own tokenizer, the named one when it has none, null for data that are token ids. Throws
 * `invalid_spec` for another tokenizer than the model's.
 */
export function dataTokenizer(
  model: { readonly name: string; readonly tokenizer: StoredTokenizer },
  named: TokenizerName | 'none' | undefined,
): StoredTokenizer {
  const own = model.tokenizer;
  if (named === 'none') return null;
  if (named === undefined) return own;
  if (own === null) return named === 'char' ? { type: named, alphabet: null } : { type: named };
  if (named !== own.type) {
    throw new GptdError(
      'invalid_spec',
      `${model.name} has the ${own.type} tokenizer: its data cannot be read with ${named}.`,
    );
  }
  return own;
}

/** The tokenizer that a model takes over from the text that it is trained on; null when it keeps what it has. */
export const adoptedTokenizer = (stored: StoredTokenizer, read: TokenizerSpec | null): TokenizerSpec | null =>
  completeTokenizer(stored) === null ? read : null;
