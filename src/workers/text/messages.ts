// The text thread's part of the thread contract: it turns text into token ids, and says once what a tokenizer's tokens stand for, so
// that ids can be turned back into text wherever they arrive. It does nothing else, because a prompt must not wait for long work.

import type { TokenTable } from '../../model/text/byte-decoding.ts';
import type { TokenizerSpec } from '../../model/text/tokenizer.ts';
import type { RequestOf, ThreadContract } from '../reply.ts';

/** name -> [request, reply]. `key` names a tokenizer on the thread. */
export interface TextCalls {
  /** Makes a tokenizer. Throws `invalid_spec` for a bad alphabet. */
  open: [{ readonly key: string; readonly tokenizer: TokenizerSpec }, TokenTable];
  /** The token ids of a text. Throws `invalid_spec` for a text that the tokenizer cannot encode. */
  encode: [{ readonly key: string; readonly text: string }, { readonly ids: Uint32Array }];
  close: [{ readonly key: string }, Record<string, never>];
}

export type TextRequest = RequestOf<TextCalls>;

export const TEXT_THREAD: ThreadContract<TextCalls> = {
  file: 'workers/text/thread',
  requests: {},
  replies: {
    open: ({ bytes, ends }) => [bytes, ends],
    encode: ({ ids }) => [ids],
  },
};
