// Byte-level BPE vocabularies as files: vocab.json with merges.txt, or tokenizer.json, as Hugging Face writes them. A tokenizer
// that splits text in another way than GPT-2 is not imitated: it is refused with the reason.

import { bytesOfPrintable, END_OF_TEXT_TOKEN, gpt2Tokens, printable } from './bpe.ts';
import { GptdError } from '../errors.ts';
import type { BpeVocabulary } from './tokenizer.ts';

const BPE_TOKENS_MAX = 1 << 20;

/** The files that were found: JSON files parsed, and merges.txt as text. */
interface BpeFiles {
  readonly vocabJson?: unknown;
  readonly mergesText?: string | undefined;
  readonly tokenizerJson?: unknown;
}

/**
 * Returns the vocabulary of the files. When there is a tokenizer.json, the other two are not read. Throws `incompatible` for a
 * tokenizer that is not a byte-level BPE like GPT-2's, and `corrupt` for files that contradict themselves.
 */
export function readBpe({ vocabJson, mergesText, tokenizerJson }: BpeFiles): BpeVocabulary {
  if (tokenizerJson !== undefined) return readTokenizerJson(tokenizerJson);
  if (vocabJson === undefined || mergesText === undefined) {
    throw incompatible('A vocabulary needs both vocab.json and merges.txt.');
  }
  const merges = mergesText
    .split(/\r?\n/)
    .filter((line, i) => line !== '' && !(i === 0 && line.startsWith('#version')));
  const ids = idsOf(vocabJson, 'vocab.json');
  const special = ids.filter(([token]) => token === END_OF_TEXT_TOKEN);
  return vocabulary({ ids, merges, special });
}

/**
 * Resolves to GPT-2's own vocabulary. The merges follow from the ranks: merging a token's bytes by lower ranks leaves two parts,
 * and these two parts are the token's merge.
 */
export async function gpt2Vocabulary(): Promise<BpeVocabulary> {
  const bytes = await gpt2Tokens();
  const tokens = bytes.map(printable);
  const rankOf = new Map(tokens.map((token, rank) => [token, rank]));
  const merges = tokens.slice(256).map((token, i) => {
    const parts = Array.from(token);
    while (parts.length > 2) {
      const ranks = parts.slice(1).map((part, at) => rankOf.get(parts[at] + part) ?? Infinity);
      const at = ranks.indexOf(Math.min(...ranks.filter((rank) => rank < i + 256)));
      parts.splice(at, 2, parts[at] + parts[at + 1]);
    }
    return parts.join(' ');
  });
  return { tokens: [...tokens, END_OF_TEXT_TOKEN], merges, special: [tokens.length] };
}

export const isSameBpe = (a: BpeVocabulary, b: BpeVocabulary): boolean =>
  JSON.stringify([a.tokens, a.merges, a.special]) === JSON.stringify([b.tokens, b.merges, b.special]);

function readTokenizerJson(json: unknown): BpeVocabulary {
  const { model, pre_tokenizer: split, normalizer = null, added_tokens: added = [] } = record(json, 'tokenizer.json');
  const rules = record(model, 'The model of tokenizer.json');
  if (rules['type'] !== undefined && rules['type'] !== 'BPE') {
    throw incompatible(`The tokenizer is a ${shown(rules['type'])}: only byte-level BPE is known.`);
  }
  if (normalizer !== null) throw incompatible('The tokenizer normalizes text, which is not known here.');
  const pieces = typeof split === 'object' && split !== null ? (split as Record<string, unknown>) : {};
  if (pieces['type'] !== 'ByteLevel' || pieces['add_prefix_space'] === true || pieces['use_regex'] === false) {
    throw incompatible("The tokenizer does not split text in GPT-2's way (ByteLevel without a prefix space).");
  }
  for (const option of ['continuing_subword_prefix', 'end_of_word_suffix', 'byte_fallback', 'ignore_merges']) {
    if (rules[option]) throw incompatible(`The tokenizer uses ${option}, which is not known here.`);
  }
  const ids = idsOf(rules['vocab'], 'The vocabulary of tokenizer.json');
  if (!Array.isArray(rules['merges'])) throw corrupt('tokenizer.json has no list of merges.');
  const merges = rules['merges'].map((merge: unknown) => (Array.isArray(merge) ? merge.join(' ') : String(merge)));
  if (!Array.isArray(added)) throw corrupt('The added_tokens of tokenizer.json are no list.');
  const special = added.map((token): [string, number] => {
    const { content, id } = record(token, 'An added token of tokenizer.json');
    if (typeof content !== 'string' || !isId(id))
      throw corrupt('An added token of tokenizer.json has no content or id.');
    return [content, id];
  });
  return vocabulary({ ids, merges, special });
}

function vocabulary({
  ids,
  merges,
  special,
}: {
  readonly ids: readonly (readonly [string, number])[];
  readonly merges: readonly string[];
  readonly special: readonly (readonly [string, number])[];
}): BpeVocabulary {
  const specials = new Set(special.map(([, id]) => id));
  const all = [...ids, ...special];
  if (merges.length > BPE_TOKENS_MAX)
    throw corrupt(`There are ${merges.length} merges: there may be at most ${BPE_TOKENS_MAX}.`);
  const tokens = new Array<string | null>(1 + all.reduce((max, [, id]) => Math.max(max, id), -1)).fill(null);
  for (const [token, id] of all) {
    if (tokens[id] !== null && tokens[id] !== token) {
      throw corrupt(`Tokens ${shown(tokens[id])} and ${shown(token)} have the same id ${id}.`);
    }
    if (!specials.has(id) && bytesOfPrintable(token) === undefined) {
      throw incompatible(`The token ${shown(token)} does not belong to a byte-level vocabulary.`);
    }
    tokens[id] = token;
  }
  const known = new Set(ids.map(([token]) => token));
  for (const merge of merges) {
    const halves = merge.split(' ');
    if (halves.length !== 2 || !known.has(halves.join('')) || !halves.every((half) => known.has(half))) {
      throw corrupt(`The merge ${shown(merge)} does not join two tokens into a third.`);
    }
  }
  return { tokens, merges, special: [...specials].sort((a, b) => a - b) };
}

function idsOf(json: unknown, what: string): [string, number][] {
  const entries = Object.entries(record(json, what));
  if (entries.length === 0 || entries.length > BPE_TOKENS_MAX) {
    throw corrupt(`${what} has ${entries.length} tokens: it must have 1 to ${BPE_TOKENS_MAX}.`);
  }
  return entries.map(([token, id]) => {
    if (!isId(id)) throw corrupt(`${what} gives ${shown(token)} the id ${shown(id)}.`);
    return [token, id];
  });
}

const isId = (value: unknown): value is number =>
  Number.isSafeInteger(value) && (value as number) >= 0 && (value as number) < BPE_TOKENS_MAX;

function record(json: unknown, what: string): Record<string, unknown> {
  if (typeof json !== 'object' || json === null || Array.isArray(json)) throw corrupt(`${what} is not an object.`);
  return json as Record<string, unknown>;
}

const corrupt = (message: string): GptdError => new GptdError('corrupt', message);
const incompatible = (message: string): GptdError => new GptdError('incompatible', message);
const shown = (value: unknown): string => JSON.stringify([value]).slice(1, -1).slice(0, 60);
