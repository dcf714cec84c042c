// Byte pair encoding over bytes, GPT-2's and those of other vocabularies (Sennrich et al., 2016; Radford et al., 2019).
// GPT-2's vocabulary is gpt-tokenizer's r50k_base table. The merge loop is ours: it is n log n for any run of letters or
// spaces, and it splits text by Unicode's White_Space as OpenAI's tokenizer does, where JavaScript's \s also counts the
// byte order mark and misses U+0085.

import { byteDecoding } from './byte-decoding.ts';
import { assert, GptdError } from '../errors.ts';
import { GPT2_IDS, type BpeVocabulary, type Tokenizer } from './tokenizer.ts';

/**
 * GPT-2's printable form of each byte: itself where it is a visible character of Latin-1, else the next one from U+0100
 * on, so that a space is \u0120 and a line break \u010A.
 */
export const BYTE_CHARACTERS: readonly string[] = byteCharacters();

function byteCharacters(): string[] {
  const visible = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(visible(byte) ? byte : next++));
}

const byteOfCharacter = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]));

/** Bytes in their printable form. */
export const printable = (bytes: Uint8Array): string => Array.from(bytes, (byte) => BYTE_CHARACTERS[byte]).join('');

/** The bytes of a printable form; undefined when it holds a character that stands for none. */
export function bytesOfPrintable(text: string): Uint8Array | undefined {
  const bytes = Array.from(text, (character) => byteOfCharacter.get(character));
  return bytes.every((byte) => byte !== undefined) ? Uint8Array.from(bytes) : undefined;
}

const END_OF_TEXT = GPT2_IDS - 1;
export const END_OF_TEXT_TOKEN = '<|endoftext|>';
/** GPT-2's split into pieces; no token spans two of them. */
const PIECES =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
/** Pieces repeat: their ids are kept, up to this many pieces of this many characters. */
const CACHED_PIECES_MAX = 100_000;
const CACHED_PIECE_LENGTH_MAX = 64;

let gpt2: Promise<Tokenizer> | undefined;

/** GPT-2's own tokenizer, loaded once per thread. */
export function gpt2Tokenizer(): Promise<Tokenizer> {
  return (gpt2 ??= loadGpt2());
}

/** The bytes of GPT-2's tokens by id, but for the last one, `<|endoftext|>`. A token's id is its rank among merges. */
export async function gpt2Tokens(): Promise<Uint8Array[]> {
  const { default: table } = await import('gpt-tokenizer/bpeRanks/r50k_base');
  const utf8 = new TextEncoder();
  const tokens = table.map((token) => (typeof token === 'string' ? utf8.encode(token) : Uint8Array.from(token)));
  assert(tokens.length === END_OF_TEXT, `r50k_base has ${tokens.length} tokens`);
  return tokens;
}

async function loadGpt2(): Promise<Tokenizer> {
  const tokens = await gpt2Tokens();
  const rankOf = new Map(tokens.map((bytes, rank) => [binaryString(bytes), rank]));
  const merge = byteMerger({
    lengthMax: Math.max(...tokens.map((bytes) => bytes.length)),
    rankOf: (left, right) => rankOf.get(left + right),
    idOf: (text) => rankOf.get(text),
  });
  // A piece that is a token as a whole needs no merges: that is how the ranks were made.
  const encodePiece = (piece: string): Uint32Array => {
    const whole = rankOf.get(piece);
    return whole === undefined ? merge(piece) : Uint32Array.of(whole);
  };
  tokens.push(new TextEncoder().encode(END_OF_TEXT_TOKEN));
  return {
    vocabSize: GPT2_IDS,
    endOfText: END_OF_TEXT,
    encode: pieceEncoder(encodePiece),
    ...byteDecoding((id) => tokens[id]),
  };
}

/** The tokenizer of another byte-level vocabulary, with GPT-2's split into pieces. */
export function bytePairTokenizer({ tokens, merges, special }: BpeVocabulary): Tokenizer {
  const specials = new Set(special);
  const bytes = tokens.map((token, id) => {
    if (token === null) return undefined;
    return specials.has(id) ? new TextEncoder().encode(token) : bytesOfPrintable(token);
  });
  const idOf = new Map<string, number>();
  for (const [id, token] of bytes.entries()) {
    if (token !== undefined && !specials.has(id)) idOf.set(binaryString(token), id);
  }
  const rankOf = new Map<string, number>();
  let lengthMax = 1;
  for (const [rank, merge] of merges.entries()) {
    const [left, right] = merge.split(' ').map((half) => binaryString(bytesOfPrintable(half) ?? new Uint8Array()));
    rankOf.set(pairKey(left, right), rank);
    lengthMax = Math.max(lengthMax, left.length + right.length);
  }
  const merge = byteMerger({
    lengthMax,
    rankOf: (left, right) => rankOf.get(pairKey(left, right)),
    idOf: (text) => idOf.get(text),
  });
  const endOfText = special.find((id) => tokens[id] === END_OF_TEXT_TOKEN) ?? null;
  return { vocabSize: tokens.length, endOfText, encode: pieceEncoder(merge), ...byteDecoding((id) => bytes[id]) };
}

/** Binary strings end at U+00FF, so nothing else has this key. */
const pairKey = (left: string, right: string): string => `${left}\u0100${right}`;

/** Encodes text piece by piece; `merge` turns the bytes of a piece into ids. */
function pieceEncoder(merge: (piece: string) => Uint32Array): (text: string) => Uint32Array {
  const utf8 = new TextEncoder();
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
  return (text) => {
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

interface MergeRules {
  /** No merge makes a longer token. */
  readonly lengthMax: number;
  /** The rank of merging two neighbours, each a binary string; undefined when they do not merge. */
  readonly rankOf: (left: string, right: string) => number | undefined;
  readonly idOf: (text: string) => number | undefined;
}

/**
 * Byte pair merging: while two neighbours merge, the pair of lowest rank, and of those the leftmost, becomes one.
 * Neighbours are a linked list, candidates a heap: n log n for n bytes.
 */
function byteMerger({ lengthMax, rankOf, idOf }: MergeRules): (piece: string) => Uint32Array {
  const heap = createHeap();

  return (piece) => {
    // Part p begins at byte p and ends at end[p], where the next part begins; start[e] is the part that ends at e.
    // rank[p] is that of part p joined with the next one, -1 when they form no token or p is no longer a part.
    const n = piece.length;
    const end = Uint32Array.from({ length: n }, (_, part) => part + 1);
    const start = Uint32Array.from({ length: n + 1 }, (_, byte) => Math.max(0, byte - 1));
    const rank = new Int32Array(n).fill(-1);
    const consider = (part: number): void => {
      const next = end[part];
      const pairEnd = next < n ? end[next] : Infinity;
      rank[part] =
        pairEnd - part <= lengthMax ? (rankOf(piece.slice(part, next), piece.slice(next, pairEnd)) ?? -1) : -1;
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
      const id = idOf(piece.slice(part, end[part]));
      if (id === undefined) {
        const token = printable(Uint8Array.from(piece.slice(part, end[part]), (byte) => byte.charCodeAt(0)));
        throw new GptdError('invalid_spec', `The model's vocabulary has no token for ${JSON.stringify(token)}.`);
      }
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
