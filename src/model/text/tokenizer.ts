// What a tokenizer is: text to token ids and back. Which ones there are is a model's TokenizerSpec; create-tokenizer.ts makes
// them, and choice.ts says which of them a model gets.

/**
 * A vocabulary as vocab.json and merges.txt spell it: each byte is one printable character (see BYTE_CHARACTERS), the
 * token of id n is `tokens[n]`, null where there is none, and merges are two tokens with a space between, best first.
 */
export interface BpeVocabulary {
  readonly tokens: readonly (string | null)[];
  readonly merges: readonly string[];
  /** Ids of tokens that stand for themselves and never come out of a text, like `<|endoftext|>`. */
  readonly special: readonly number[];
}

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

/** The half of a tokenizer that goes from ids to text. */
export interface TokenDecoding {
  /** The bytes that an id stands for; undefined when there is no such id. */
  readonly bytesOf: (id: number) => Uint8Array | undefined;
  /** Unknown ids decode to nothing, broken UTF-8 to U+FFFD. */
  decode(ids: Iterable<number>): string;
  /** What `decode` gives for one id alone. */
  decodeOne(id: number): string;
  stream(): StreamDecoder;
}

export interface Tokenizer extends TokenDecoding {
  readonly vocabSize: number;
  /** The id of `<|endoftext|>`; null where the vocabulary has none. */
  readonly endOfText: number | null;
  /** Never yields special tokens: `<|endoftext|>` in a text is text. Lone surrogates are read as U+FFFD. */
  encode(text: string): Uint32Array;
}

/** How many ids GPT-2's vocabulary has, and plain bytes. */
export const GPT2_IDS = 50257;
export const BYTE_IDS = 256;

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
