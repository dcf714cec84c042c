// Which tokenizer a model gets, and which one its data are read with. No other file decides that. A model without a tokenizer
// knows token ids only.

import { GptdError } from '../errors.ts';
import { gpt2Vocabulary, isSameBpe } from './bpe-files.ts';
import { completeTokenizer, type StoredTokenizer } from './stored.ts';
import { BYTE_IDS, GPT2_IDS, type BpeVocabulary, type TokenizerSpec } from './tokenizer.ts';

/** The tokenizers that a user may ask for by name. A `bpe` only comes with imported weights. */
type TokenizerName = Exclude<TokenizerSpec['type'], 'bpe'>;

/** Returns the name of a model's tokenizer, or null for a model that knows token ids only. */
export const tokenizerName = (stored: StoredTokenizer): TokenizerSpec['type'] | null => stored?.type ?? null;

/**
 * Returns the named tokenizer, or the one that the size of the vocabulary suggests. Throws `invalid_spec` when the vocabulary is
 * too small for the tokenizer.
 */
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
  /** The tokenizer in the files; null when there is none, or one that is not known here. */
  readonly found: TokenizerSpec | null;
  /** Whether there are notes for the user about the files, such as why their tokenizer was not taken. */
  readonly isNoted: boolean;
}

/**
 * Returns the named tokenizer, or else the tokenizer of the files. When there is neither and nothing was noted about the files, a
 * vocabulary of GPT-2's size suggests GPT-2's tokenizer.
 */
export function importedTokenizer({ vocabSize, named, found, isNoted }: ImportedTokenizer): StoredTokenizer {
  if (named !== undefined) return newTokenizer(vocabSize, named);
  return found === null && !isNoted && vocabSize === GPT2_IDS ? newTokenizer(vocabSize) : found;
}

/**
 * Resolves to the tokenizer of a vocabulary that came with weights, which is `gpt2` for GPT-2's own vocabulary. Throws
 * `incompatible` when the model has fewer ids than the vocabulary.
 */
export async function vocabularyTokenizer(vocabulary: BpeVocabulary, vocabSize: number): Promise<TokenizerSpec> {
  if (vocabulary.tokens.length > vocabSize) {
    throw new GptdError(
      'incompatible',
      `The vocabulary has ${vocabulary.tokens.length} ids, but the model has only ${vocabSize}.`,
    );
  }
  return isSameBpe(vocabulary, await gpt2Vocabulary()) ? { type: 'gpt2' } : { type: 'bpe', ...vocabulary };
}

/**
 * Returns the tokenizer that a model's data are read with: the model's own, or the named one when the model has none, or null for
 * data that are token ids. Throws `invalid_spec` for another tokenizer than the model's.
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

/** Returns the tokenizer that a model adopts from its training text, or null when it keeps its own. */
export const adoptedTokenizer = (stored: StoredTokenizer, read: TokenizerSpec | null): TokenizerSpec | null =>
  completeTokenizer(stored) === null ? read : null;
