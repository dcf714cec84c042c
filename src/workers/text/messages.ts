// The text thread's part of the thread contract: the thread turns text into token ids. For each tokenizer it also tells once what
// the tokens stand for, so that any thread can turn ids back into text. It does nothing else, because a prompt must not wait for
// long work.

import type { TokenTable } from '../../model/text/byte-decoding.ts';
import type { TokenizerSpec } from '../../model/text/tokenizer.ts';
import type { RequestOf, ThreadContract } from '../reply.ts';

/** name -> [request, reply]. `key` names a tokenizer on the thread. */
export interface TextCalls {
  /** Makes a tokenizer, and replies with what its tokens stand for. Throws `invalid_spec` for a bad alphabet. */
  open: [{ readonly key: string; readonly tokenizer: TokenizerSpec }, TokenTable];
  /** Encodes a text as token ids. Throws `invalid_spec` for a text that the tokenizer cannot encode. */
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
