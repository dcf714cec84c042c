// What the stage with the head keeps of one sequence: its ids and its sampler's settings. Draws are addressed by (seed, sample,
// index), so a token does not depend on how many were sampled in one step.

import { PURPOSE, uniform } from '../../model/random/philox.ts';
import { sample, type LogitRow, type Sample } from '../../model/sampling.ts';
import { GuessLength } from './guess-length.ts';
import type { SequenceBegin, ServeSample } from './messages.ts';

/** A guess follows where this many of the newest ids occurred before; the longest match is tried first. */
const DRAFT_MATCH_LENGTHS = [3, 2];
/** How many ids back a guess looks. */
const DRAFT_HISTORY_MAX = 4096;

export class SequenceOutput {
  readonly #begin: SequenceBegin;
  /** The prompt's ids, then the generated ones. */
  readonly #history: number[];
  readonly #promptLength: number;
  readonly #stopIds: ReadonlySet<number>;
  readonly #guessLength = new GuessLength();
  /** The newest guesses of `draft`. */
  #drafts: readonly number[] = [];
  /** Whether a stop id or the last index has been reached. */
  #ended = false;

  constructor(begin: SequenceBegin) {
    const { prompt, continued, stopIds } = begin;
    this.#begin = begin;
    this.#history = [...prompt, ...continued];
    this.#promptLength = prompt.length;
    this.#stopIds = new Set(stopIds);
  }

  /**
   * Samples from rows of logits, one for each guess and one more. It goes on to the next row as long as the token is the guessed
   * one, because only then were the later rows computed from the tokens that were really sampled.
   */
  sample(rows: readonly LogitRow[], { index, lastIndex, drafts }: ServeSample): Sample[] {
    const tokens: Sample[] = [];
    for (const [row, values] of rows.entries()) {
      const token = this.#next(values, index + row);
      tokens.push(token);
      this.#ended = this.#stopIds.has(token.id) || index + row === lastIndex;
      if (this.#ended || token.id !== drafts.at(row)) break;
    }
    this.#guessLength.learn({ drafted: drafts.length, accepted: tokens.length - 1 });
    return tokens;
  }

  #next(row: LogitRow, index: number): Sample {
    const { seed, ...options } = this.#begin.sampling;
    const u = uniform({ seed, purpose: PURPOSE.sampling, step: this.#begin.sample, index });
    const [history, promptLength] = [this.#history, this.#promptLength];
    const token = sample(row, { ...options, history, promptLength, u });
    history.push(token.id);
    return token;
  }

  /**
   * What the next step needs: the newest id, the count of all ids, the next token's index and the guesses; null after the end.
   */
  get next(): { id: number; count: number; index: number; drafts: readonly number[] } | null {
    if (this.#ended) return null;
    const { length } = this.#history;
    return { id: this.#history[length - 1], count: length, index: length - this.#promptLength, drafts: this.#drafts };
  }

  /**
   * Returns the ids that followed when the newest ids were last seen (prompt lookup, Saxena 2023): as many as are worth a check,
   * and `max` at the most. There are none when the newest ids were not seen before.
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

/** Returns `count` ids, `ids` over and over: what has begun to repeat itself is guessed to go on so. */
const continued = (ids: readonly number[], count: number): number[] =>
  Array.from({ length: count }, (_, i) => ids[i % ids.length]);
