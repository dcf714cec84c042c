// One sequence of a batch: which ids are in its context, how far they are computed, and when it ends. A context that slides
// begins again with its newer half at position 0; where it begins follows from the number of ids alone, so that a
// sequence that was interrupted finds itself where it was.

import { capacityFor } from '../../model/programs/serving.ts';
import type { Sample } from '../../model/sampling.ts';
import type {
  SampledRows,
  SamplingOptions,
  SequenceBegin,
  ServeFollow,
  ServeShare,
} from '../../workers/serving/messages.ts';
import type { GenerateSpec } from '../protocol/kinds.ts';
import type { TokenEnd } from './sequence-text.ts';

/** Guesses of a step. */
const DRAFT_MAX = 15;

export interface GenerationRequest {
  /** Names the sequence on the stages. */
  readonly sequence: string;
  readonly spec: GenerateSpec;
  readonly prompt: readonly number[];
  /** Which of the spec's samples this is. */
  readonly sample: number;
  /** Ids that were generated before an interruption. */
  readonly continued: readonly number[];
  /** Whether the text of these has reached a stop string. */
  readonly isStopped: boolean;
  readonly cancelled: AbortSignal;
  readonly halted: AbortSignal;
  /** Returns whether the sequence ends with the token because of what its text is. */
  readonly onToken: (token: Sample, at: { readonly index: number } & TokenEnd) => boolean;
  /** Called while the sequence waits, with its place in the queue from 1, when that changes. */
  readonly onWait: (place: number) => void;
}

export interface Generation {
  readonly ids: readonly number[];
  readonly reason: 'stop' | 'length' | 'context';
  readonly promptTokens: number;
  /** Prompt tokens that were taken from another sequence's cache. */
  readonly reusedTokens: number;
  readonly drafted: number;
  readonly accepted: number;
  readonly queueMs: number;
  readonly prefillMs: number;
  readonly firstTokenMs: number;
  readonly tokensPerSecond: number;
}

interface SequenceOptions {
  readonly request: GenerationRequest;
  /** Positions of the model's context. */
  readonly context: number;
  readonly resolve: (generation: Generation) => void;
  readonly reject: (error: unknown) => void;
}

/** How many ids a context that is full and one id more keeps when it slides. */
const keptAfterSlide = (context: number): number => Math.max(1, Math.floor(context / 2));

/** Index of the first id that is still in a sliding context of `count` ids, the newest not yet computed. */
export function keptFrom(count: number, context: number): number {
  let start = 0;
  while (count - start > context) start += context + 1 - keptAfterSlide(context);
  return start;
}

export class Sequence {
  readonly request: GenerationRequest;
  readonly reject: (error: unknown) => void;
  readonly #resolve: (generation: Generation) => void;
  readonly #context: number;
  readonly #promptLength: number;
  readonly #stopIds: ReadonlySet<number>;
  /** Generated ids, those before an interruption included. */
  readonly #ids: number[];
  /** The ids of the context, by position. */
  window: number[];
  /** How many of them are computed and cached. */
  position = 0;
  /** Where the beginning of the cache comes from; taken by the first step. */
  fork: ServeShare['fork'] = null;
  /** What the head's stage is to know of it; null when the first step has taken it along. */
  #begin: SequenceBegin | null;
  /** The text has reached a stop string: the stage may have gone on meanwhile. */
  isStoppedByText = false;
  #drafts: readonly number[] = [];
  #place = 0;
  readonly #stats = { reused: 0, drafted: 0, accepted: 0 };
  readonly #times = { queued: performance.now(), started: 0, first: 0 };

  constructor({ request, context, resolve, reject }: SequenceOptions) {
    this.request = request;
    this.#resolve = resolve;
    this.reject = reject;
    this.#context = context;
    this.#promptLength = request.prompt.length;
    this.#stopIds = new Set(request.spec.stopIds);
    this.#ids = [...request.continued];
    this.#begin = beginOf(request);
    const all = [...request.prompt, ...request.continued];
    this.window = this.#slides ? all.slice(keptFrom(all.length, context)) : all;
  }

  get name(): string {
    return this.request.sequence;
  }

  /** Positions that its cache may come to take. */
  get room(): number {
    const { maxTokens } = this.request.spec;
    return capacityFor(Math.min(this.#context, this.#promptLength + maxTokens));
  }

  /** Only the newest id waits to be computed. */
  get decoding(): boolean {
    return this.window.length - this.position === 1 && this.#ids.length > this.request.continued.length;
  }

  /** Tells its place in the queue when that is new. */
  waitAt(place: number): void {
    if (place === this.#place) return;
    this.#place = place;
    this.request.onWait(place);
  }

  start(): void {
    this.#times.started = performance.now();
  }

  /** Before its first step. */
  forkFrom(fork: ServeShare['fork']): void {
    this.fork = fork;
    this.position = fork?.length ?? 0;
    this.#stats.reused = Math.min(this.position, this.#promptLength);
  }

  /** The rows of its next step, with its beginning in the first one; null when there is no room for more of its prompt in this step. */
  next({
    prefillRows,
    guessMax,
  }: {
    prefillRows: number;
    guessMax: number;
  }): { share: ServeShare; rows: readonly number[]; begin: SequenceBegin | null } | null {
    const { decoding } = this;
    const rest = this.window.length - this.position;
    const count = decoding ? 1 : Math.min(rest, prefillRows);
    if (count === 0) return null;
    const index = this.#ids.length;
    const lastIndex = this.#lastIndex;
    // A guess needs a position, and a token that it may yield.
    const draftRoom = Math.min(this.#context - this.position - 1, lastIndex - index);
    const drafts = decoding ? this.#drafts.slice(0, Math.min(guessMax, draftRoom)) : [];
    const rows = [...this.window.slice(this.position, this.position + count), ...drafts];
    const sample = count < rest ? null : { index, lastIndex, drafts, draftMax: this.#draftMax };
    const share = { sequence: this.name, position: this.position, rowCount: rows.length, fork: this.fork, sample };
    const begin = this.#begin;
    this.fork = null;
    this.#begin = null;
    return { share, rows, begin };
  }

  /**
   * What the stage goes on with behind a step under way that yields up to `tokensMax` tokens, or the last ones; null when the context
   * may slide with these, or when there will be none behind them.
   */
  follow({ tokensMax, guessMax }: { tokensMax: number; guessMax: number }): ServeFollow | null {
    const [count, lastIndex] = [this.#ids.length, this.#lastIndex];
    if (count >= lastIndex || (this.#slides && this.window.length + tokensMax > this.#context)) return null;
    const left = this.#promptLength + count - this.window.length;
    return { sequence: this.name, left, lastIndex, draftMax: this.#draftMax, guessMax };
  }

  /** Takes up what a step gave that computed `count` known ids, and guesses behind them; whether the sequence has ended. */
  settle({ count, sampled }: { count: number; sampled: SampledRows | null }): boolean {
    this.position += count;
    if (sampled === null) return false;
    if (this.#times.first === 0) this.#times.first = performance.now();
    const { tokens, drafted, draft } = sampled;
    let taken = 0;
    let stopped = false;
    // The stage knows no stop strings: what it has sampled behind one is dropped.
    for (; taken < tokens.length && !stopped; taken++) stopped = this.#take(tokens[taken]);
    // Rows of guesses that were right are computed; later ones are computed anew, over the wrong ones.
    this.position += taken - 1;
    this.#stats.drafted += drafted;
    this.#stats.accepted += taken - 1;
    this.#drafts = draft;
    if (this.#endWith({ stopped })) return true;
    this.#slide();
    return false;
  }

  /** Whether the token is a stop. */
  #take(token: Sample): boolean {
    const index = this.#ids.length;
    const isStopId = this.#stopIds.has(token.id);
    const stopped = this.request.onToken(token, { index, isStopId, isLast: isStopId || index === this.#lastIndex });
    this.isStoppedByText = stopped && !isStopId;
    this.#ids.push(token.id);
    this.window.push(token.id);
    return stopped || isStopId;
  }

  /** Resolves when an interruption came between the last token and the end; whether it did. */
  endedBefore(): boolean {
    const { continued, isStopped } = this.request;
    return this.#endWith({ stopped: isStopped || this.#stopIds.has(continued.at(-1) ?? -1) });
  }

  /** Resolves when there is nothing more to generate. */
  #endWith({ stopped }: { stopped: boolean }): boolean {
    const { ids, reason } = { ids: this.#ids, reason: this.#reason(stopped) };
    if (reason === null) return false;
    const { queued, started, first } = this.#times;
    const now = performance.now();
    const later = ids.length - this.request.continued.length - 1;
    this.#resolve({
      ids,
      reason,
      promptTokens: this.#promptLength,
      reusedTokens: this.#stats.reused,
      drafted: this.#stats.drafted,
      accepted: this.#stats.accepted,
      queueMs: started === 0 ? 0 : started - queued,
      prefillMs: first === 0 ? 0 : first - started,
      firstTokenMs: first === 0 ? 0 : first - queued,
      tokensPerSecond: later > 0 ? (later * 1000) / (now - first) : 0,
    });
    return true;
  }

  /** How many ids to guess next, at the most. */
  get #draftMax(): number {
    return this.request.spec.speculate ? DRAFT_MAX : 0;
  }

  get #slides(): boolean {
    return this.request.spec.onContextFull === 'slide';
  }

  /** A full context still yields one token, which is never fed back. */
  get #lastIndex(): number {
    const last = this.request.spec.maxTokens - 1;
    return this.#slides ? last : Math.min(last, this.#context - this.#promptLength);
  }

  #reason(stopped: boolean): Generation['reason'] | null {
    if (stopped) return 'stop';
    if (this.#ids.length >= this.request.spec.maxTokens) return 'length';
    return this.#ids.length > this.#lastIndex ? 'context' : null;
  }

  #slide(): void {
    if (!this.#slides || this.window.length <= this.#context) return;
    this.window = this.window.slice(-keptAfterSlide(this.#context));
    this.position = 0;
    this.#drafts = [];
  }
}

/** What the head's stage is to know of a sequence. */
function beginOf({ sequence, spec, prompt, continued, sample }: GenerationRequest): SequenceBegin {
  return { sequence, prompt, continued, stopIds: spec.stopIds, sampling: samplingOf(spec), sample };
}

/** The fields of a spec that the head's stage samples by. */
function samplingOf(spec: GenerateSpec): SamplingOptions {
  const { temperature, topK, topP, minP, repetitionPenalty, presencePenalty, frequencyPenalty } = spec;
  const { logitBias = {}, bannedIds, logprobs, seed } = spec;
  return {
    temperature,
    topK,
    topP,
    minP,
    repetitionPenalty,
    presencePenalty,
    frequencyPenalty,
    bannedIds,
    logprobs,
    seed,
    logitBias: new Map(Object.entries(logitBias).map(([id, bias]) => [Number(id), bias])),
  };
}
