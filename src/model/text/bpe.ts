// Byte pair encoding over bytes, with GPT-2's vocabulary or another one (Sennrich et al., 2016; Radford et al., 2019).
// GPT-2's vocabulary is gpt-tokenizer's r50k_base table. The merge loop and the split are ours. The loop takes n log n steps for
// any run of letters or spaces. The split uses Unicode's White_Space, as OpenAI's tokenizer does, because JavaScript's \s also
// counts the byte order mark and misses U+0085.

import { byteDecoding } from './byte-decoding.ts';
import { assert, GptdError } from '../errors.ts';
import { GPT2_IDS, type BpeVocabulary, type Tokenizer } from './tokenizer.ts';

/**
 * The printable character of each byte in GPT-2's files. A visible character of Latin-1 stands for itself, and every other byte
 * gets the next character from U+0100 on, so that a space is \u0120 and a line break \u010A.
 */
export const BYTE_CHARACTERS: readonly string[] = byteCharacters();

function byteCharacters(): string[] {
  const visible = (byte: number): boolean =>
    (byte >= 0x21 && byte <= 0x7e) || (byte >= 0xa1 && byte <= 0xac) || (byte >= 0xae && byte <= 0xff);
  let next = 0x100;
  return Array.from({ length: 256 }, (_, byte) => String.fromCodePoint(visible(byte) ? byte : next++));
}

const byteOfCharacter = new Map(BYTE_CHARACTERS.map((character, byte) => [character, byte]));

/** Returns the printable form of bytes. */
export const printable = (bytes: Uint8Array): string => Array.from(bytes, (byte) => BYTE_CHARACTERS[byte]).join('');

/** Returns the bytes of a printable form, or undefined when a character stands for no byte. */
export function bytesOfPrintable(text: string): Uint8Array | undefined {
  const bytes = Array.from(text, (character) => byteOfCharacter.get(character));
  return bytes.every((byte) => byte !== undefined) ? Uint8Array.from(bytes) : undefined;
}

const END_OF_TEXT = GPT2_IDS - 1;
export const END_OF_TEXT_TOKEN = '<|endoftext|>';
/** GPT-2's rule for splitting a text into pieces. No token spans two pieces. */
const PIECES =
  /'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\p{White_Space}\p{L}\p{N}]+|\p{White_Space}+(?!\P{White_Space})|\p{White_Space}+/gu;
/** Pieces repeat, so their ids are cached: at most this many pieces of at most this many characters. */
const CACHED_PIECES_MAX = 100_000;
const CACHED_PIECE_LENGTH_MAX = 64;

let gpt2: Promise<Tokenizer> | undefined;

/** Resolves to GPT-2's own tokenizer, which is loaded once per thread. */
export function gpt2Tokenizer(): Promise<Tokenizer> {
  return (gpt2 ??= loadGpt2());
}

/**
 * Resolves to the bytes of GPT-2's tokens by id, without the last one, `<|endoftext|>`. A token's id is the rank of its merge.
 */
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
  // A piece that is a token as a whole needs no merges, because the ranks were learned from such pieces.
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

/** Returns the tokenizer of another byte-level vocabulary, which splits text into pieces as GPT-2 does. */
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

/** The key of a pair is unique, because the characters of a binary string end at U+00FF. */
const pairKey = (left: string, right: string): string => `${left}\u0100${right}`;

/** Returns a function that encodes text piece by piece. `merge` turns the bytes of a piece into ids. */
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
 * Yields the pieces of a text. Throws `limit_exceeded` for a run of millions of letters or spaces, on which the regular
 * expression runs out of stack.
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

/** Returns bytes as a string of the characters U+0000 to U+00FF, which is a key for a Map and cheap to slice. */
function binaryString(bytes: Uint8Array): string {
  let text = '';
  for (let start = 0; start < bytes.length; start += 4096)
    text += String.fromCharCode(...bytes.subarray(start, start + 4096));
  return text;
}

interface MergeRules {
  /** The bytes of the longest token. No merge makes a longer one. */
  readonly lengthMax: number;
  /** Returns the rank of merging two neighbours, each a binary string, or undefined when they do not merge. */
  readonly rankOf: (left: string, right: string) => number | undefined;
  readonly idOf: (text: string) => number | undefined;
}

/**
 * Byte pair merging: as long as any two neighbours merge, the pair of the lowest rank becomes one part, the leftmost pair first
 * among equals. The parts are a linked list and the candidates a heap, so n bytes take n log n steps.
 */
function byteMerger({ lengthMax, rankOf, idOf }: MergeRules): (piece: string) => Uint32Array {
  const heap = createHeap();

  return (piece) => {
    // Part p begins at byte p and ends at end[p], where the next part begins; start[e] is the part that ends at e.
    // rank[p] is the rank of the merge of part p and the next one. It is -1 when they do not merge or when p is not a part.
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
      // An entry is stale when its part has grown or was swallowed after the entry was pushed.
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
