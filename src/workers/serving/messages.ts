// The plain data of a step that generates: whose rows it takes, how their tokens are sampled, and its results. It knows token ids
// only: they become text where they are sent to a client.

import type { Sample, SampleOptions } from '../../model/sampling.ts';

/** What a sequence is sampled by. The stage adds to it what has been generated so far, and the draw that follows from the seed. */
export interface SamplingOptions extends Omit<SampleOptions, 'history' | 'promptLength' | 'u'> {
  readonly seed: number;
}

/**
 * What the stage with the head knows of a sequence. The sequence ends with one of `stopIds`, or with the `lastIndex` of a step.
 */
export interface SequenceBegin {
  readonly sequence: string;
  readonly prompt: readonly number[];
  /** The ids that were generated before an interruption: they follow the prompt. */
  readonly continued: readonly number[];
  readonly stopIds: readonly number[];
  readonly sampling: SamplingOptions;
  /** Which of several samples of one prompt this is: it keys the draws. */
  readonly sample: number;
}

/** The rows of a step that belong to one sequence, at positions from `position` on. */
export interface ServeShare {
  readonly sequence: string;
  readonly position: number;
  readonly rowCount: number;
  /** Another sequence's cache, whose first `length` positions this sequence begins with; null when it goes on with its own. */
  readonly fork: { readonly from: string; readonly length: number } | null;
  /** What to sample after the last rows; null while the prompt is read. */
  readonly sample: ServeSample | null;
}

export interface ServeSample {
  /** The index of the next token among the generated ones. */
  readonly index: number;
  /** The sequence ends with the token of this index, whichever token it is. */
  readonly lastIndex: number;
  /** The ids of the share's last rows when they are guesses; the row before them is that of the newest token. */
  readonly drafts: readonly number[];
  /** How many ids to guess for the next step, at the most. */
  readonly draftMax: number;
}

/** A sequence that goes on after a step, with the id that it sampled in that step and with its own guesses. */
export interface ServeFollow {
  readonly sequence: string;
  /** How many of the sequence's first ids have left its context: positions count from the id after them. */
  readonly left: number;
  /** As in ServeSample. */
  readonly lastIndex: number;
  readonly draftMax: number;
  /** How many guesses to check, at the most. */
  readonly guessMax: number;
}

/**
 * Sequences that go on by themselves until one of them ends or fills its context, `tokensMax` tokens have been sampled, `spanMs`
 * milliseconds have passed, or `interrupt`, in shared memory, is no longer `turn`. Of each step the sequence with the most tokens
 * counts. The reply has an entry for each step, and in it one for each sequence: null for a sequence that had ended.
 */
export interface FollowRequest {
  readonly lease: string;
  readonly follows: readonly ServeFollow[];
  readonly tokensMax: number;
  readonly spanMs: number;
  readonly interrupt: Int32Array<SharedArrayBuffer>;
  readonly turn: number;
}

/** The results of a share's rows: one token and one more for every guess that was right, and guesses at what follows. */
export interface SampledRows {
  readonly tokens: readonly Sample[];
  /** How many guesses were checked. */
  readonly drafted: number;
  /** The guesses for the next step. */
  readonly draft: readonly number[];
}
