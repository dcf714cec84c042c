// A tokenizer as it is stored in a model's row. It is checked where it leaves the store, because a row may be damaged, and a row
// of an older version may lack fields.

import { GptdError } from '../errors.ts';
import type { TokenizerSpec } from './tokenizer.ts';

/** A stored tokenizer is null for a model that knows token ids only. `char` gets its alphabet from the first training text. */
export type StoredTokenizer = TokenizerSpec | { readonly type: 'char'; readonly alphabet: null } | null;

/** Returns the tokenizer, or null when there is none or when its alphabet is not known yet. */
export const completeTokenizer = (stored: StoredTokenizer): TokenizerSpec | null =>
  stored?.type === 'char' && stored.alphabet === null ? null : stored;

/** Returns the tokenizer that parsed JSON describes. Throws `corrupt` when it describes none. */
export function readStoredTokenizer(value: unknown): StoredTokenizer {
  if (value === null) return null;
  if (typeof value !== 'object') throw unreadable('it is no object');
  const { type, alphabet = null, tokens, merges, special = [] } = value as Readonly<Record<string, unknown>>;
  switch (type) {
    case 'gpt2':
    case 'byte':
      return { type };
    case 'char':
      if (alphabet === null || typeof alphabet === 'string') return { type, alphabet };
      throw unreadable('its alphabet is no text');
    case 'bpe':
      if (!isListOf(tokens, isTokenOrNull)) throw unreadable('its tokens are no list of texts');
      if (!isListOf(merges, isText)) throw unreadable('its merges are no list of texts');
      if (!isListOf(special, isId)) throw unreadable('its special tokens are no list of ids');
      return { type, tokens, merges, special };
    default:
      throw unreadable(`its type is ${JSON.stringify(type)}`);
  }
}

const isText = (value: unknown): value is string => typeof value === 'string';
const isTokenOrNull = (value: unknown): value is string | null => value === null || isText(value);
const isId = (value: unknown): value is number => Number.isInteger(value);

const isListOf = <T>(value: unknown, isItem: (item: unknown) => item is T): value is readonly T[] =>
  Array.isArray(value) && value.every(isItem);

const unreadable = (why: string): GptdError => new GptdError('corrupt', `The tokenizer cannot be read: ${why}.`);
