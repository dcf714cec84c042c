// Text to token ids and back: GPT-2's byte-level BPE, one of another vocabulary, plain bytes, or the characters of one text.
// The two that merge bytes are in bpe.ts.

import { bytePairTokenizer, gpt2Tokenizer, type BpeVocabulary } from './bpe.ts';
import { byteDecoding } from './byte-decoding.ts';
import { GptdError } from '../errors.ts';

/** Which tokenizer a model has. It is plain data: it is stored with the model. */
export type TokenizerSpec =
  | { readonly type: 'gpt2' }
  | { readonly type: 'byte' }
  /** `alphabet` is what `charAlphabet` made: its n-th character has id n. */
  | { readonly type: 'char'; readonly alphabet: string }
  /** A byte-level BPE that came with imported weights. */
  | ({ readonly type: 'bpe' } & BpeVocabulary);

/** Decodes one sequence as it grows. */
export interface StreamDecoder {
  /** The text that `id` completes: bytes that may still become a character are held back. Unknown ids add nothing. */
  push(id: number): string;
  /** What was held back, as U+FFFD. The decoder is then as new. */
  flush(): string;
}

export interface Tokenizer {
  readonly vocabSize: number;
  /** The id of `<|endoftext|>`; null where the vocabulary has none. */
  readonly endOfText: number | null;
  /** Never yields special tokens: `<|endoftext|>` in a text is text. Lone surrogates are read as U+FFFD. */
  encode(text: string): Uint32Array;
  /** Unknown ids decode to nothing, broken UTF-8 to U+FFFD. */
  decode(ids: Iterable<number>): string;
  stream(): StreamDecoder;
}

/**
 * The tokenizer of a spec. `gpt2` loads its vocabulary once per thread. Throws `invalid_spec` for a bad alphabet.
 */
export async function createTokenizer(spec: TokenizerSpec): Promise<Tokenizer> {
  switch (spec.type) {
    case 'gpt2':
      return gpt2Tokenizer();
    case 'byte':
      return byteTokenizer();
    case 'char':
      return charTokenizer(spec.alphabet);
    case 'bpe':
      return bytePairTokenizer(spec);
    default:
      return spec satisfies never;
  }
}

/** The longest token of GPT-2's vocabulary. */
const GPT2_TOKEN_BYTES_MAX = 128;

/** How many tokens `text` has at the least, without encoding it: exactly so many for bytes and characters. */
export function tokenCountMin({ type }: TokenizerSpec, text: string): number {
  switch (type) {
    case 'gpt2':
      return Math.ceil(new TextEncoder().encode(text).length / GPT2_TOKEN_BYTES_MAX);
    case 'byte':
      return new TextEncoder().encode(text).length;
    case 'char':
      return Array.from(text).length;
    case 'bpe':
      // A vocabulary of its own may have tokens of any length.
      return Math.min(1, text.length);
    default:
      return type satisfies never;
  }
}

/** The alphabet of a text: its characters (code points), each once, in ascending order. */
export function charAlphabet(text: string): string {
  const points = new Set<number>();
  for (const character of wellFormed(text)) points.add(character.codePointAt(0)!);
  return [...points]
    .sort((a, b) => a - b)
    .map((point) => String.fromCodePoint(point))
    .join('');
}

/** A lone half of a surrogate pair has no UTF-8 form: it becomes U+FFFD, as in TextEncoder. */
const wellFormed = (text: string): string => text.replace(/\p{Surrogate}/gu, '\uFFFD');

// ---- Characters
// ------------------------------------------------------------------------------------------------------

function charTokenizer(alphabet: string): Tokenizer {
  const characters = Array.from(alphabet);
  const idOf = new Map(characters.map((character, id) => [character, id]));
  if (characters.length === 0)
    throw new GptdError('invalid_spec', 'The alphabet is empty: it needs at least one character.');
  if (charAlphabet(alphabet) !== alphabet) {
    throw new GptdError(
      'invalid_spec',
      'The alphabet is out of order: it must hold each character once, in code point order.',
    );
  }
  return {
    vocabSize: characters.length,
    endOfText: null,
    encode: (text) => {
      const ids = new Uint32Array(text.length);
      let count = 0;
      for (const character of wellFormed(text)) {
        const id = idOf.get(character);
        if (id === undefined) {
          const point = character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, '0');
          throw new GptdError(
            'invalid_spec',
            `The character ${JSON.stringify(character)} (U+${point}) is not in the model's alphabet of ${characters.length} characters.`,
          );
        }
        ids[count++] = id;
      }
      return ids.slice(0, count);
    },
    decode: (ids) => Array.from(ids, (id) => characters[id] ?? '').join(''),
    stream: () => ({ push: (id) => characters[id] ?? '', flush: () => '' }),
  };
}

// ---- Bytes
// -----------------------------------------------------------------------------------------------------------

function byteTokenizer(): Tokenizer {
  const bytes = Array.from({ length: 256 }, (_, id) => Uint8Array.of(id));
  return {
    vocabSize: 256,
    endOfText: null,
    encode: (text) => Uint32Array.from(new TextEncoder().encode(text)),
    ...byteDecoding((id) => bytes[id]),
  };
}
