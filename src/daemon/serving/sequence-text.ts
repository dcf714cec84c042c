// This is the text of one sequence as it grows. It says what each token shows, and whether the text has reached a stop string.
// Bytes that may still become a character are held back, and so is text that may become a stop string.

import type { Sample } from '../../model/sampling.ts';
import { stopFilter, type StopFilter } from '../../model/text/stop.ts';
import type { StreamDecoder, TokenDecoding } from '../../model/text/tokenizer.ts';
import type { TokenData } from '../protocol/generation.ts';

/** Says whether a token ends its sequence, whatever its text is. */
export interface TokenEnd {
  /** Whether the token is one of the spec's stop ids. Its own text is not shown then. */
  readonly isStopId: boolean;
  /** Whether no token follows it, whatever its text is. All text that was held back is shown with it then. */
  readonly isLast: boolean;
}

export class SequenceText {
  /** It is null for a model that knows token ids only: all of its texts are empty. */
  readonly #decoding: TokenDecoding | null;
  readonly #decoder: StreamDecoder | null;
  readonly #stop: StopFilter;
  readonly #listsPieces: boolean;
  /** Whether the text of the ids that were generated before an interruption has reached a stop string. */
  readonly isStopped: boolean;

  constructor(
    decoding: TokenDecoding | null,
    {
      spec,
      continued,
    }: { spec: { stop: readonly string[]; logprobs?: number | undefined }; continued: readonly number[] },
  ) {
    this.#decoding = decoding;
    this.#decoder = decoding?.stream() ?? null;
    this.#stop = stopFilter(spec.stop);
    this.#listsPieces = spec.logprobs !== undefined;
    this.isStopped = continued.map((id) => this.#push(id)).some(({ stopped }) => stopped);
  }

  /** Returns the text that a token shows, and whether the sequence ends with it because of that text. */
  next(id: number, { isStopId, isLast }: TokenEnd): { readonly text: string; readonly stopped: boolean } {
    const pushed = isStopId ? { text: '', stopped: false } : this.#push(id);
    if (pushed.stopped || !isLast) return pushed;
    const rest = this.#stop.push(this.#decoder?.flush() ?? '');
    return { text: pushed.text + rest.text + this.#stop.flush(), stopped: rest.stopped };
  }

  /** Returns the token's own text and the likeliest tokens with theirs, as far as the spec's `logprobs` asks for them. */
  listed({ id, top }: Sample): Pick<TokenData, 'piece' | 'top'> {
    if (!this.#listsPieces) return {};
    const piece = this.#piece(id);
    if (top === undefined) return { piece };
    return { piece, top: top.map((other) => ({ ...other, text: this.#piece(other.id) })) };
  }

  #push(id: number): { readonly text: string; readonly stopped: boolean } {
    return this.#stop.push(this.#decoder?.push(id) ?? '');
  }

  #piece(id: number): string {
    return this.#decoding?.decodeOne(id) ?? '';
  }
}
