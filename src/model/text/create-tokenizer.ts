// The tokenizer of a spec: GPT-2's byte-level BPE, a byte-level BPE with another vocabulary, plain bytes, or the characters of
// one text. The two tokenizers that merge bytes are in bpe.ts.

import { bytePairTokenizer, gpt2Tokenizer } from './bpe.ts';
import { byteDecoding } from './byte-decoding.ts';
import { GptdError } from '../errors.ts';
import { BYTE_IDS, type Tokenizer, type TokenizerSpec } from './tokenizer.ts';

/**
 * Resolves to the tokenizer of a spec. `gpt2` loads its vocabulary once per thread. Throws `invalid_spec` for a bad alphabet.
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

/** Returns the alphabet of a text: its characters (code points), each once, in ascending order. */
export function charAlphabet(text: string): string {
  const points = new Set<number>();
  for (const character of wellFormed(text)) points.add(character.codePointAt(0)!);
  return [...points]
    .sort((a, b) => a - b)
    .map((point) => String.fromCodePoint(point))
    .join('');
}

/** A lone half of a surrogate pair has no UTF-8 form, so it becomes U+FFFD, as in TextEncoder. */
const wellFormed = (text: string): string => text.replace(/\p{Surrogate}/gu, '\uFFFD');

// ---- Characters ------------------------------------------------------------------------------------------------------

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
  const utf8 = new TextEncoder();
  const bytes = characters.map((character) => utf8.encode(character));
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
    ...byteDecoding((id) => bytes[id]),
  };
}

// ---- Bytes -----------------------------------------------------------------------------------------------------------

function byteTokenizer(): Tokenizer {
  const bytes = Array.from({ length: BYTE_IDS }, (_, id) => Uint8Array.of(id));
  return {
    vocabSize: BYTE_IDS,
    endOfText: null,
    encode: (text) => Uint32Array.from(new TextEncoder().encode(text)),
    ...byteDecoding((id) => bytes[id]),
  };
}
