// What the head's stage keeps of one sequence: its ids, its sampler's settings, the decoder and the stop strings. Draws are
// addressed by (seed, sample, index), so a token does not depend on how many were sampled in one step.

import { PURPOSE, uniform } from '../../model/random/philox.ts';
import { sample, type LogitRow } from '../../model/sampling.ts';
import { stopFilter, type StopFilter } from '../../model/text/stop.ts';
import type { StreamDecoder, Tokenizer } from '../../model/text/tokenizer.ts';
import { GuessLength } from './guess-length.ts';
import type { SampledToken, ServeSample } from './messages.ts';
import type { StageCalls } from '../stage-messages.ts';

/** Ids that a guess must match, tried from the longest on. */
const DRAFT_MATCH_LENGTHS = [3, 2];
/** How far back a guess looks. */
const DRAFT_HISTORY_MAX = 4096;

export class SequenceOutput {
  readonly #request: StageCalls['serveBegin'][0];
  readonly #tokenizer: Tokenizer | null;
  /** The prompt's ids, then the generated ones. */
  readonly #history: number[];
  readonly #promptLength: number;
  readonly #stopIds: ReadonlySet<number>;
  readonly #decoder: StreamDecoder | null;
  readonly #stop: StopFilter;
  readonly #guessLength = new GuessLength();
  /** What `draft` has guessed last. */
  #drafts: readonly number[] = [];
  /** A stop has been reached, or the last index. */
  #ended = false;
  /** The ids that were generated before an interruption have reached a stop already. */
  readonly stopped: boolean;

  constructor(request: StageCalls['serveBegin'][0], ids: readonly number[], tokenizer: Tokenizer | null) {
    const { continued, stop, stopIds } = request;
    this.#request = request;
    this.#tokenizer = tokenizer;
    this.#history = [...ids, ...continued];
    this.#promptLength = ids.length;
    this.#stopIds = new Set(stopIds);
    this.#decoder = tokenizer?.stream() ?? null;
    this.#stop = stopFilter(stop);
    const shown = continued.map((id) => this.#stop.push(this.#decoder?.push(id) ?? ''));
    this.stopped = shown.some(({ stopped }) => stopped) || this.#stopIds.has(continued.at(-1) ?? -1);
  }

  /**
   * Samples from rows of logits, one for each draft and one more. Goes on to the next row as long as the token is the one
   * that the draft guessed, because only then were the later rows computed from what was really said.
   */
  sample(rows: readonly LogitRow[], { index, lastIndex, drafts }: ServeSample): SampledToken[] {
    const tokens: SampledToken[] = [];
    for (const [row, values] of rows.entries()) {
      const token = this.#next(values, { index: index + row, last: index + row === lastIndex });
      tokens.push(token);
      this.#ended = token.stopped || index + row === lastIndex;
      if (this.#ended || token.id !== drafts.at(row)) break;
    }
    this.#guessLength.learn({ drafted: drafts.length, accepted: tokens.length - 1 });
    return tokens;
  }

  #next(row: LogitRow, { index, last }: { index: number; last: boolean }): SampledToken {
    const { seed, ...options } = this.#request.sampling;
    const u = uniform({ seed, purpose: PURPOSE.sampling, step: this.#request.sample, index });
    const [history, promptLength] = [this.#history, this.#promptLength];
    const { id, logprob, top } = sample(row, { ...options, history, promptLength, u });
    history.push(id);
    const piece = (token: number): string => this.#tokenizer?.decode([token]) ?? '';
    const token = {
      ...{ id, logprob },
      ...(options.logprobs === undefined ? {} : { piece: piece(id) }),
      ...(top === undefined ? {} : { top: top.map((other) => ({ ...other, text: piece(other.id) })) }),
    };
    const ended = this.#stopIds.has(id);
    const pushed = ended ? { text: '', stopped: false } : this.#stop.push(this.#decoder?.push(id) ?? '');
    if (pushed.stopped || !(last || ended)) return { ...token, ...pushed };
    const rest = this.#stop.push(this.#decoder?.flush() ?? '');
    return { ...token, text: pushed.text + rest.text + this.#stop.flush(), stopped: rest.stopped || ended };
  }

  /** What comes after the newest token, before it is computed; null behind the end. `count` is of all ids, the prompt's included. */
  get next(): { id: number; count: number; index: number; drafts: readonly number[] } | null {
    if (this.#ended) return null;
    const { length } = this.#history;
    return { id: this.#history[length - 1], count: length, index: length - this.#promptLength, drafts: this.#drafts };
  }

  /**
   * The ids that followed when the newest ids were last seen (prompt lookup, Saxena 2023), as many as pay and `max` at the most; none
   * when the newest ids are new.
   */
  draft(max: number): readonly number[] {
    this.#drafts = this.#guess(Math.min(max, this.#guessLength.count));
    return this.#drafts;
  }

  #guess(count: number): readonly number[] {
    const history = this.#history;
    const oldest = Math.max(0, history.length - DRAFT_HISTORY_MAX);
    for (const length of count > 0 ? DRAFT_MATCH_LENGTHS : []) {
      const tail = history.slice(-length);
      for (let end = history.length - 1; end - length >= oldest; end--) {
        if (tail.every((id, i) => history[end - length + i] === id)) return continued(history.slice(end), count);
      }
    }
    return [];
  }
}

/** The first `count` ids of `ids` over and over: what has begun to repeat itself is guessed to go on so. */
const continued = (ids: readonly number[], count: number): number[] =>
  Array.from({ length: count }, (_, i) => ids[i % ids.length]);
