// The entry of the text thread: the tokenizers of the models that read and write text. Encoding half a million characters takes
// some 50 ms. The main thread must not stop for so long, and neither must a stage.

import { assert } from '../../model/errors.ts';
import { tokenTable } from '../../model/text/byte-decoding.ts';
import { createTokenizer } from '../../model/text/create-tokenizer.ts';
import type { Tokenizer } from '../../model/text/tokenizer.ts';
import { replying } from '../reply.ts';
import { TEXT_THREAD, type TextCalls, type TextRequest } from './messages.ts';

/**
 * Holds the tokenizers by their keys. The error of a tokenizer that cannot be made is the reply to every request that uses it.
 */
const tokenizers = new Map<string, Promise<Tokenizer>>();

async function opened(key: string): Promise<Tokenizer> {
  const tokenizer = tokenizers.get(key);
  assert(tokenizer !== undefined, `no tokenizer ${key}`);
  return await tokenizer;
}

async function handle(request: TextRequest): Promise<TextCalls[keyof TextCalls][1]> {
  switch (request.type) {
    case 'open':
      tokenizers.set(request.key, createTokenizer(request.tokenizer));
      return tokenTable(await opened(request.key));
    case 'encode':
      return { ids: (await opened(request.key)).encode(request.text) };
    case 'close':
      tokenizers.delete(request.key);
      return {};
    default:
      request satisfies never;
      throw new Error('unknown request');
  }
}

export default replying(handle, TEXT_THREAD);
