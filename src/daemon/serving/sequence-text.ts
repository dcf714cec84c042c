// The text of one sequence as it grows: what each token shows, and whether the text has reached a stop string. Bytes that may still
// become a character are held back, and so is text that may become a stop string.

import type { Sample } from '../../model/sampling.ts';
import { stopFilter, type StopFilter } from '../../model/text/stop.ts';
import type { StreamDecoder, TokenDecoding } from '../../model/text/tokenizer.ts';
import type { TokenData } from '../protocol/generation.ts';

/** How a token stands in its sequence. */
export interface TokenEnd {
  /** It is one of the spec's stop ids: its own text is not shown. */
  readonly isStopId: boolean;
  /** No token follows it, whatever its text is: all that was held back is shown with it. */
  readonly isLast: boolean;
}

export class SequenceText {
  /** null for a model that knows token ids only: all of its texts are empty. */
  readonly #decoding: TokenDecoding | null;
  readonly #decoder: StreamDecoder | null;
  readonly #stop: StopFilter;
  readonly #listsPieces: boolean;
  /** The text of the ids that were generated before an interruption has reached a stop string. */
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

  /** The text that a token shows, and whether the sequence ends with it because of that text. */
  next(id: number, { isStopId, isLast }: TokenEnd): { readonly text: string; readonly stopped: boolean } {
    const pushed = isStopId ? { text: '', stopped: false } : this.#push(id);
    if (pushed.stopped || !isLast) return pushed;
    const rest = this.#stop.push(this.#decoder?.flush() ?? '');
    return { text: pushed.text + rest.text + this.#stop.flush(), stopped: rest.stopped };
  }

  /** With `logprobs`, the token's own text, and the likeliest tokens with theirs. */
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
