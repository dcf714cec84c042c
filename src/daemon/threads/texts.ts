// The text of models: prompts are encoded on a thread of their own, which starts with the first of them, and ids are decoded here by
// a table of bytes that the thread hands over once. Models with the same tokenizer share both.

import { GptdError } from '../../model/errors.ts';
import { tableDecoding } from '../../model/text/byte-decoding.ts';
import type { TokenDecoding, TokenizerSpec } from '../../model/text/tokenizer.ts';
import { TEXT_THREAD, type TextCalls } from '../../workers/text/messages.ts';
import { PRIORITY, WorkerThread, type Caller } from './worker-thread.ts';

/** The number of tokenizers that are kept. One with a vocabulary of its own takes some 30 MB. */
export const TOKENIZERS_MAX = 8;

/** A tokenizer, and the model that it belongs to. */
export interface ModelText {
  readonly model: { readonly name: string; readonly createdAt: number };
  readonly tokenizer: TokenizerSpec;
}

interface Opened {
  /** Sends requests to the thread as long as it lives. */
  readonly thread: Caller<TextCalls>;
  readonly decoding: Promise<TokenDecoding>;
}

/** Requests run in the order in which they are made: a tokenizer is opened before it is used, and used before it is closed. */
const IN_ORDER = { priority: PRIORITY.interactive } as const;

export class Texts {
  readonly #onDeath: (error: unknown) => void;
  #thread: WorkerThread<TextCalls> | null = null;
  /** Holds the opened tokenizers by key, the least recently used first. */
  readonly #opened = new Map<string, Opened>();
  #isClosed = false;

  constructor({ onDeath }: { readonly onDeath: (error: unknown) => void }) {
    this.#onDeath = onDeath;
  }

  /** The token ids of a text. Throws `invalid_spec` for one that the tokenizer cannot encode. */
  async encode(text: ModelText, content: string): Promise<readonly number[]> {
    const { thread } = this.#open(text);
    const { ids } = await thread.call('encode', { key: keyOf(text), text: content }, IN_ORDER);
    return Array.from(ids);
  }

  async decoding(text: ModelText): Promise<TokenDecoding> {
    return await this.#open(text).decoding;
  }

  /** May be called twice. */
  async close(): Promise<void> {
    this.#isClosed = true;
    await this.#thread?.close();
  }

  #open(text: ModelText): Opened {
    const key = keyOf(text);
    const opened = this.#opened.get(key) ?? this.#openNew(key, text);
    this.#opened.delete(key);
    this.#opened.set(key, opened);
    return opened;
  }

  #openNew(key: string, { tokenizer }: ModelText): Opened {
    const thread = this.#started().bound();
    const decoding = thread.call('open', { key, tokenizer }, IN_ORDER).then(tableDecoding);
    const opened = { thread, decoding };
    decoding.catch(() => {
      if (this.#opened.get(key) === opened) this.#close([key, opened]);
    });
    if (this.#opened.size >= TOKENIZERS_MAX) this.#close([...this.#opened][0]);
    return opened;
  }

  #close([key, { thread }]: [string, Opened]): void {
    this.#opened.delete(key);
    // A thread that is gone has nothing to close.
    thread.call('close', { key }, IN_ORDER).catch(() => undefined);
  }

  #started(): WorkerThread<TextCalls> {
    if (this.#isClosed) throw new GptdError('shutting_down', 'The thread is closed: the daemon is shutting down.');
    if (this.#thread !== null) return this.#thread;
    const thread = new WorkerThread(TEXT_THREAD);
    thread.onDeath((error) => {
      this.#opened.clear();
      this.#onDeath(error);
    });
    return (this.#thread = thread);
  }
}

/** A vocabulary that came with weights is told by its model: to compare it would take longer than to encode a prompt. */
function keyOf({ model, tokenizer }: ModelText): string {
  switch (tokenizer.type) {
    case 'gpt2':
    case 'byte':
      return tokenizer.type;
    case 'char':
      return `char ${tokenizer.alphabet}`;
    case 'bpe':
      return `bpe of ${model.name} since ${model.createdAt}`;
    default:
      return tokenizer satisfies never;
  }
}
