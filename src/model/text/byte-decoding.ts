// From token ids that stand for bytes back to text, as it grows: the half that all byte-level tokenizers share.

import type { StreamDecoder, Tokenizer } from './tokenizer.ts';

/**
 * The half of a tokenizer whose ids stand for bytes. `bytesOf` gives an id's bytes, undefined when there is no such id.
 */
export function byteDecoding(bytesOf: (id: number) => Uint8Array | undefined): Pick<Tokenizer, 'decode' | 'stream'> {
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
