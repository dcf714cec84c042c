// Text to token ids and back: GPT-2's byte-level BPE, plain bytes, or the characters of one text. GPT-2's vocabulary is
// gpt-tokenizer's r50k_base table. The merge loop is ours: it is n log n for any run of letters or spaces, and it
// splits text by Unicode's White_Space as OpenAI's tokenizer does, where JavaScript's \s also counts the byte order
// mark and misses U+0085.

import { assert, GptdError } from './errors.ts';

/** Which tokenizer a model has. It is plain data: it is stored with the model. */
export type TokenizerSpec =
  | { readonly type: 'gpt2' }
  | { readonly type: 'byte' }
  /** `alphabet` is what `charAlphabet` made: its n-th character has id n. */
  | { readonly type: 'char'; readonly alphabet: string };

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
 * The tokenizer of a spec. Only `gpt2` loads a vocabulary, once per thread. Throws `invalid_spec` for a bad alphabet.
 */
export async function createTokenizer(spec: TokenizerSpec): Promise<Tokenizer> {
  switch (spec.type) {
    case 'gpt2':
      return (gpt2 ??= loadGpt2());
    case 'byte':
      return byteTokenizer();
    case 'char':
      return charTokenizer(spec.alphabet);
    default:
      return spec satisfies never;
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

/**
 * The half of a tokenizer whose ids stand for bytes. `bytesOf` gives an id's bytes, undefined when there is no such id.
 */
function byteDecoding(bytesOf: (id: number) => Uint8Array | undefined): Pick<Tokenizer, 'decode' | 'stream'> {
  const stream = (): StreamDecoder => {
    // In stream mode a TextDecoder holds back exactly the bytes that may still become a character.
    const decoder = new TextDecoder('utf-8', { ignoreBOM: true });
    return {
      push: (id) => {
        const bytes = bytesOf(id);
        return bytes === undefined ? '' : decoder.decode(bytes, { stream: true });
      },
      flush: () => decoder.decode(),
    };
  };
  const decode = (ids: Iterable<number>): string => {
    const decoder = stream();
    let text = '';
    for (const id of ids) text += decoder.push(id);
    return text + decoder.flush();
  };
  return { decode, stream };
}

function byteTokenizer(): Tokenizer {
  const bytes = Array.from({ length: 256 }, (_, id) => Uint8Array.of(id));
  return {
    vocabSize: 256,
    endOfText: null,
    encode: (text) => Uint32Array.from(new TextEncoder().encode(text)),
    ...byteDecoding((id) => bytes[id]),
  };
}

// ---- GPT-2's byte pair encoding
// --------------------------------------------------------------------------------------

const END_OF_TEXT = 50256;
const VOCAB_SIZE = 50257;
/** GPT-2's split into pieces; no token spans two of them. */
const PIECES =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
/** Pieces repeat: their ids are kept, up to this many pieces of this many characters. */
const CACHED_PIECES_MAX = 100_000;
const CACHED_PIECE_LENGTH_MAX = 64;

let gpt2: Promise<Tokenizer> | undefined;

async function loadGpt2(): Promise<Tokenizer> {
  const { default: table } = await import('gpt-tokenizer/bpeRanks/r50k_base');
  const utf8 = new TextEncoder();
  const tokens = table.map((token) => (typeof token === 'string' ? utf8.encode(token) : Uint8Array.from(token)));
  assert(tokens.length === END_OF_TEXT, `r50k_base has ${tokens.length} tokens`);
  const merge = byteMerger(tokens);
  tokens.push(utf8.encode('<|endoftext|>'));

  const cache = new Map<string, Uint32Array>();
  const encodePiece = (piece: string): Uint32Array => {
    const known = cache.get(piece);
    if (known !== undefined) return known;
    const ids = merge(binaryString(utf8.encode(piece)));
    if (piece.length <= CACHED_PIECE_LENGTH_MAX) {
      if (cache.size >= CACHED_PIECES_MAX) cache.clear();
      cache.set(piece, ids);
    }
    return ids;
  };

  const encode = (text: string): Uint32Array => {
    let ids = new Uint32Array(Math.max(16, text.length >>> 1));
    let count = 0;
    for (const piece of piecesOf(text)) {
      const next = encodePiece(piece);
      if (count + next.length > ids.length) {
        const grown = new Uint32Array(2 * ids.length + next.length);
        grown.set(ids);
        ids = grown;
      }
      ids.set(next, count);
      count += next.length;
    }
    return ids.slice(0, count);
  };
  return { vocabSize: VOCAB_SIZE, endOfText: END_OF_TEXT, encode, ...byteDecoding((id) => tokens[id]) };
}

/**
 * Throws `limit_exceeded` for a run of millions of letters, or of spaces, on which the regular expression runs out of
 * stack.
 */
function* piecesOf(text: string): Generator<string> {
  try {
    for (const [piece] of text.matchAll(PIECES)) yield piece;
  } catch (cause) {
    if (!(cause instanceof RangeError)) throw cause;
    throw new GptdError(
      'limit_exceeded',
      'The text has a run of millions of characters without a break between words.',
      { cause },
    );
  }
}

/** Bytes as a string of characters U+0000 to U+00FF: a key for a Map, cheap to slice. */
function binaryString(bytes: Uint8Array): string {
  let text = '';
  for (let start = 0; start < bytes.length; start += 4096)
    text += String.fromCharCode(...bytes.subarray(start, start + 4096));
  return text;
}

/**
 * Byte pair merging over a vocabulary in which a token's id is its rank: while two neighbours form a token, the pair of
 * lowest rank, and of those the leftmost, becomes one. Neighbours are a linked list, candidates a heap: n log n for n
 * bytes.
 */
function byteMerger(tokens: readonly Uint8Array[]): (piece: string) => Uint32Array {
  const rankOf = new Map(tokens.map((bytes, rank) => [binaryString(bytes), rank]));
  const lengthMax = Math.max(...tokens.map((bytes) => bytes.length));
  const heap = createHeap();

  return (piece) => {
    const whole = piece.length <= lengthMax ? rankOf.get(piece) : undefined;
    if (whole !== undefined) return Uint32Array.of(whole);

    // Part p begins at byte p and ends at end[p], where the next part begins; start[e] is the part that ends at e.
    // rank[p] is that of part p joined with the next one, -1 when they form no token or p is no longer a part.
    const n = piece.length;
    const end = Uint32Array.from({ length: n }, (_, part) => part + 1);
    const start = Uint32Array.from({ length: n + 1 }, (_, byte) => Math.max(0, byte - 1));
    const rank = new Int32Array(n).fill(-1);
    const consider = (part: number): void => {
      const next = end[part];
      const pairEnd = next < n ? end[next] : Infinity;
      rank[part] = pairEnd - part <= lengthMax ? (rankOf.get(piece.slice(part, pairEnd)) ?? -1) : -1;
      if (rank[part] >= 0) heap.push(rank[part] * 2 ** 32 + part);
    };
    for (let part = 0; part < n; part++) consider(part);

    let count = n;
    for (let top = heap.pop(); top !== undefined; top = heap.pop()) {
      const part = top % 2 ** 32;
      // An entry is stale when its part grew or was swallowed since.
      if (rank[part] !== Math.floor(top / 2 ** 32)) continue;
      const swallowed = end[part];
      rank[swallowed] = -1;
      end[part] = end[swallowed];
      start[end[part]] = part;
      count--;
      consider(part);
      if (part > 0) consider(start[part]);
    }

    const ids = new Uint32Array(count);
    for (let part = 0, i = 0; part < n; part = end[part], i++) {
      const id = rankOf.get(piece.slice(part, end[part]));
      assert(id !== undefined, 'every byte is a token');
      ids[i] = id;
    }
    return ids;
  };
}

/** A binary min-heap of numbers; it is empty again after every merge. */
function createHeap(): { push(key: number): void; pop(): number | undefined } {
  const keys: number[] = [];
  const push = (key: number): void => {
    let at = keys.length;
    keys.push(key);
    while (at > 0) {
      const parent = (at - 1) >> 1;
      if (keys[parent] <= key) break;
      keys[at] = keys[parent];
      at = parent;
    }
    keys[at] = key;
  };
  const pop = (): number | undefined => {
    const top = keys[0];
    const key = keys.pop();
    if (key === undefined || keys.length === 0) return key;
    let at = 0;
    for (;;) {
      let child = 2 * at + 1;
      if (child >= keys.length) break;
      if (child + 1 < keys.length && keys[child + 1] < keys[child]) child++;
      if (keys[child] >= key) break;
      keys[at] = keys[child];
      at = child;
    }
    keys[at] = key;
    return top;
  };
  return { push, pop };
}
