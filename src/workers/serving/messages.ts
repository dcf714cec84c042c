// The plain data of a step that generates: whose rows it takes, how their tokens are sampled, and what came of it. All of it is token
// ids: text is made of them where they are told.

import type { Sample } from '../../model/sampling.ts';

export interface SamplingOptions {
  readonly temperature: number;
  readonly topK?: number | undefined;
  readonly topP?: number | undefined;
  readonly minP?: number | undefined;
  readonly repetitionPenalty?: number | undefined;
  readonly presencePenalty?: number | undefined;
  readonly frequencyPenalty?: number | undefined;
  /** By token id. */
  readonly logitBias?: ReadonlyMap<number, number> | undefined;
  readonly bannedIds?: readonly number[] | undefined;
  /** Likeliest tokens to list with each token. */
  readonly logprobs?: number | undefined;
  readonly seed: number;
}

/** A sequence as the head's stage gets to know it. It ends there with one of `stopIds`, or with the last index that a step tells. */
export interface SequenceBegin {
  readonly sequence: string;
  readonly prompt: readonly number[];
  /** Ids that were generated before an interruption: they follow the prompt. */
  readonly continued: readonly number[];
  readonly stopIds: readonly number[];
  readonly sampling: SamplingOptions;
  /** Which of several samples of one prompt this is: it keys the draws. */
  readonly sample: number;
}

/** One sequence's share of a step's rows, at positions from `position` on. */
export interface ServeShare {
  readonly sequence: string;
  readonly position: number;
  readonly rowCount: number;
  /** Begin with the first `length` positions of another sequence's cache. */
  readonly fork: { readonly from: string; readonly length: number } | null;
  /** What to sample after the last rows; null while the prompt goes in. */
  readonly sample: ServeSample | null;
}

export interface ServeSample {
  /** Of the next token among those generated. */
  readonly index: number;
  /** The sequence ends with the token of this index whatever it is. */
  readonly lastIndex: number;
  /** Ids of the share's last rows that are guesses; the row before them is the newest token. */
  readonly drafts: readonly number[];
  /** How many ids to guess for the next step, at the most. */
  readonly draftMax: number;
}

/** A sequence that goes on behind the step before: with the id that it sampled there, and with its own guesses. */
export interface ServeFollow {
  readonly sequence: string;
  /** Ids of the sequence that have left its context: positions count from there. */
  readonly left: number;
  /** As in ServeSample. */
  readonly lastIndex: number;
  readonly draftMax: number;
  /** Guesses of the step before that are checked, at the most. */
  readonly guessMax: number;
}

/**
 * Sequences that go on by themselves until one of them has `tokensMax` more tokens, ends or fills its context, `spanMs` have passed,
 * or `interrupt`, in shared memory, is no longer `turn`. The reply has an entry a step, in it one a sequence: null for one that had ended.
 */
export interface FollowRequest {
  readonly lease: string;
  readonly follows: readonly ServeFollow[];
  readonly tokensMax: number;
  readonly spanMs: number;
  readonly interrupt: Int32Array<SharedArrayBuffer>;
  readonly turn: number;
}

/** What a share's rows gave: one token, and one more for every draft that was right; and guesses at what follows. */
export interface SampledRows {
  readonly tokens: readonly Sample[];
  /** How many guesses were checked. */
  readonly drafted: number;
  readonly draft: readonly number[];
}
