// What a tokenizer is: text to token ids and back. A TokenizerSpec names one of the tokenizers that there are,
// create-tokenizer.ts makes a tokenizer of a spec, and choice.ts decides which tokenizer a model gets.

/**
 * A vocabulary as vocab.json and merges.txt spell it. Each byte is one printable character (see BYTE_CHARACTERS). The token of
 * id n is `tokens[n]`, or null where there is none. A merge is two tokens with a space between, and the best merge comes first.
 */
export interface BpeVocabulary {
  readonly tokens: readonly (string | null)[];
  readonly merges: readonly string[];
  /** The ids of tokens that stand for themselves and never come out of a text, like `<|endoftext|>`. */
  readonly special: readonly number[];
}

/** Which tokenizer a model has. It is plain data: it is stored with the model. */
export type TokenizerSpec =
  | { readonly type: 'gpt2' }
  | { readonly type: 'byte' }
  /** `alphabet` is made by `charAlphabet`: its n-th character has id n. */
  | { readonly type: 'char'; readonly alphabet: string }
  /** A byte-level BPE that came with imported weights. */
  | ({ readonly type: 'bpe' } & BpeVocabulary);

/** Decodes one sequence as it grows. */
export interface StreamDecoder {
  /** Returns the text that `id` completes. Bytes that may still become a character are held back. Unknown ids add nothing. */
  push(id: number): string;
  /** Returns U+FFFD for bytes that were held back. The decoder can then begin another sequence. */
  flush(): string;
}

/** The half of a tokenizer that goes from ids to text. */
export interface TokenDecoding {
  /** Returns the bytes that an id stands for, or undefined when there is no such id. */
  readonly bytesOf: (id: number) => Uint8Array | undefined;
  /** Returns the text of the ids. Unknown ids decode to nothing, and broken UTF-8 decodes to U+FFFD. */
  decode(ids: Iterable<number>): string;
  /** Returns what `decode` gives for one id alone. */
  decodeOne(id: number): string;
  stream(): StreamDecoder;
}

export interface Tokenizer extends TokenDecoding {
  readonly vocabSize: number;
  /** The id of `<|endoftext|>`; null where the vocabulary has none. */
  readonly endOfText: number | null;
  /**
   * Returns the ids of a text, which are never special: `<|endoftext|>` in a text is text. Lone surrogates are read as U+FFFD.
   */
  encode(text: string): Uint32Array;
}

/** The number of ids in GPT-2's vocabulary, and in the vocabulary of plain bytes. */
export const GPT2_IDS = 50257;
export const BYTE_IDS = 256;

/** The bytes of the longest token in GPT-2's vocabulary. */
const GPT2_TOKEN_BYTES_MAX = 128;

/** Returns the least number of tokens that `text` can have, without encoding it. The number is exact for bytes and characters. */
export function tokenCountMin({ type }: Pick<TokenizerSpec, 'type'>, text: string): number {
  switch (type) {
    case 'gpt2':
      return Math.ceil(new TextEncoder().encode(text).length / GPT2_TOKEN_BYTES_MAX);
    case 'byte':
      return new TextEncoder().encode(text).length;
    case 'char':
      return Array.from(text).length;
    case 'bpe':
      // An imported vocabulary may have tokens of any length.
      return Math.min(1, text.length);
    default:
      return type satisfies never;
  }
}
