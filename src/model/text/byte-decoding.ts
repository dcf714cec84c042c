// From token ids that stand for bytes back to text, as the text grows: the half that all tokenizers share. Decoding needs only
// the bytes of a tokenizer's tokens, and a TokenTable brings these from one thread to another.

import type { StreamDecoder, TokenDecoding, Tokenizer } from './tokenizer.ts';

/** The bytes of all tokens, one after the other. Token `id` ends at `ends[id]`, where the next token begins. */
export interface TokenTable {
  readonly bytes: Uint8Array;
  readonly ends: Uint32Array;
}

/** Returns a decoder over `bytesOf`, which gives the bytes of an id, or undefined when there is no such id. */
export function byteDecoding(bytesOf: TokenDecoding['bytesOf']): TokenDecoding {
  const single = new TextDecoder('utf-8', { ignoreBOM: true });
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
  return { bytesOf, decode, decodeOne: (id) => single.decode(bytesOf(id)), stream };
}

/** Returns a copy of the bytes of a tokenizer's tokens. */
export function tokenTable({ vocabSize, bytesOf }: Tokenizer): TokenTable {
  const tokens = Array.from({ length: vocabSize }, (_, id) => bytesOf(id) ?? new Uint8Array());
  const ends = new Uint32Array(vocabSize);
  let end = 0;
  for (const [id, token] of tokens.entries()) {
    end += token.length;
    ends[id] = end;
  }
  const bytes = new Uint8Array(end);
  for (const [id, token] of tokens.entries()) bytes.set(token, ends[id] - token.length);
  return { bytes, ends };
}

/** Returns a decoder that decodes as the tokenizer of the table does. */
export const tableDecoding = ({ bytes, ends }: TokenTable): TokenDecoding =>
  byteDecoding((id) => {
    const end = ends[id] as number | undefined;
    return end === undefined ? undefined : bytes.subarray(ends[id - 1] ?? 0, end);
  });
