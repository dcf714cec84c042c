// What the head's stage keeps of one sequence: its ids and its sampler's settings. Draws are addressed by (seed, sample, index), so
// a token does not depend on how many were sampled in one step.

import { PURPOSE, uniform } from '../../model/random/philox.ts';
import { sample, type LogitRow, type Sample } from '../../model/sampling.ts';
import { GuessLength } from './guess-length.ts';
import type { SequenceBegin, ServeSample } from './messages.ts';

/** Ids that a guess must match, tried from the longest on. */
const DRAFT_MATCH_LENGTHS = [3, 2];
/** How far back a guess looks. */
const DRAFT_HISTORY_MAX = 4096;

export class SequenceOutput {
  readonly #begin: SequenceBegin;
  /** The prompt's ids, then the generated ones. */
  readonly #history: number[];
  readonly #promptLength: number;
  readonly #stopIds: ReadonlySet<number>;
  readonly #guessLength = new GuessLength();
  /** What `draft` has guessed last. */
  #drafts: readonly number[] = [];
  /** A stop id has been reached, or the last index. */
  #ended = false;

  constructor(begin: SequenceBegin) {
    const { prompt, continued, stopIds } = begin;
    this.#begin = begin;
    this.#history = [...prompt, ...continued];
    this.#promptLength = prompt.length;
    this.#stopIds = new Set(stopIds);
  }

  /**
   * Samples from rows of logits, one for each draft and one more. Goes on to the next row as long as the token is the one
   * that the draft guessed, because only then were the later rows computed from what was really said.
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
