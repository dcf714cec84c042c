// A sequence of a batch knows which ids are in its context, how far they are computed, and when it ends. A context that slides
// begins again with its newer half at position 0. Where it begins follows from the number of ids alone, so that a sequence that
// was interrupted finds itself where it was.

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

/** The largest number of guesses that one sequence has in a step. */
const DRAFT_MAX = 15;

export interface GenerationRequest {
  /** The name of the sequence on the stages. */
  readonly sequence: string;
  readonly spec: GenerateSpec;
  readonly prompt: readonly number[];
  /** The index of this sample among the spec's samples. */
  readonly sample: number;
  /** The ids that were generated before an interruption. */
  readonly continued: readonly number[];
  /** Whether the text of these ids has reached a stop string. */
  readonly isStopped: boolean;
  readonly cancelled: AbortSignal;
  readonly halted: AbortSignal;
  /** Is called with every token. Returns whether the sequence ends with the token because of its text. */
  readonly onToken: (token: Sample, at: { readonly index: number } & TokenEnd) => boolean;
  /** Is called while the sequence waits, with its place in the queue from 1, when that changes. */
  readonly onWait: (place: number) => void;
}

export interface Generation {
  readonly ids: readonly number[];
  readonly reason: 'stop' | 'length' | 'context';
  readonly promptTokens: number;
  /** The number of prompt tokens that were taken from another sequence's cache. */
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
  /** The number of positions of the model's context. */
  readonly context: number;
  readonly resolve: (generation: Generation) => void;
  readonly reject: (error: unknown) => void;
}

/** Returns how many ids a context keeps when it slides, which it does when it has one id more than its positions. */
const keptAfterSlide = (context: number): number => Math.max(1, Math.floor(context / 2));

/**
 * Returns the index of the first id that is still in a sliding context of `count` ids, the newest of which is not yet computed.
 */
function keptFrom(count: number, context: number): number {
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
  /** The generated ids, including those from before an interruption. */
  readonly #ids: number[];
  /** The ids of the context, by position. */
  window: number[];
  /** The number of ids of the context that are computed and cached. */
  position = 0;
  /** Says which cache the beginning is copied from. The first step takes it along. */
  fork: ServeShare['fork'] = null;
  /** What the stage with the head is to know of the sequence; null when the first step has taken it along. */
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

  /** The number of positions that the sequence's cache may come to take. */
  get room(): number {
    const { maxTokens } = this.request.spec;
    return capacityFor(Math.min(this.#context, this.#promptLength + maxTokens));
  }

  /** Whether only the newest id waits to be computed. */
  get decoding(): boolean {
    return this.window.length - this.position === 1 && this.#ids.length > this.request.continued.length;
  }

  /** Reports the sequence's place in the queue when that is new. */
  waitAt(place: number): void {
    if (place === this.#place) return;
    this.#place = place;
    this.request.onWait(place);
  }

  start(): void {
    this.#times.started = performance.now();
  }

  /** Says where the beginning comes from, before the first step. */
  forkFrom(fork: ServeShare['fork']): void {
    this.fork = fork;
    this.position = fork?.length ?? 0;
    this.#stats.reused = Math.min(this.position, this.#promptLength);
  }

  /**
   * Returns the rows of the next step, with `begin` in the first one; null when there is no room for more of the prompt in this
   * step.
   */
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
   * Returns what the stage goes on with behind the step under way, which yields up to `tokensMax` tokens. Returns null when the
   * context may slide with these tokens, or when the step yields the last token.
   */
  follow({ tokensMax, guessMax }: { tokensMax: number; guessMax: number }): ServeFollow | null {
    const [count, lastIndex] = [this.#ids.length, this.#lastIndex];
    if (count >= lastIndex || (this.#slides && this.window.length + tokensMax > this.#context)) return null;
    const left = this.#promptLength + count - this.window.length;
    return { sequence: this.name, left, lastIndex, draftMax: this.#draftMax, guessMax };
  }

  /**
   * Takes the result of a step that computed `count` known ids and guesses behind them. Returns whether the sequence has ended.
   */
  settle({ count, sampled }: { count: number; sampled: SampledRows | null }): boolean {
    this.position += count;
    if (sampled === null) return false;
    if (this.#times.first === 0) this.#times.first = performance.now();
    const { tokens, drafted, draft } = sampled;
    let taken = 0;
    let stopped = false;
    // The stage knows no stop strings: what it has sampled behind one is dropped.
    for (; taken < tokens.length && !stopped; taken++) stopped = this.#take(tokens[taken]);
    // The rows of right guesses are computed. Later rows are computed again, over those of the wrong guesses.
    this.position += taken - 1;
    this.#stats.drafted += drafted;
    this.#stats.accepted += taken - 1;
    this.#drafts = draft;
    if (this.#endWith({ stopped })) return true;
    this.#slide();
    return false;
  }

  /** Takes one token. Returns whether the sequence stops with it. */
  #take(token: Sample): boolean {
    const index = this.#ids.length;
    const isStopId = this.#stopIds.has(token.id);
    const stopped = this.request.onToken(token, { index, isStopId, isLast: isStopId || index === this.#lastIndex });
    this.isStoppedByText = stopped && !isStopId;
    this.#ids.push(token.id);
    this.window.push(token.id);
    return stopped || isStopId;
  }

  /** Resolves the generation when an interruption came between the last token and the end. Returns whether it did. */
  endedBefore(): boolean {
    const { continued, isStopped } = this.request;
    return this.#endWith({ stopped: isStopped || this.#stopIds.has(continued.at(-1) ?? -1) });
  }

  /** Resolves the generation when there is nothing more to generate. Returns whether it did. */
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

  /** The largest number of ids to guess next. */
  get #draftMax(): number {
    return this.request.spec.speculate ? DRAFT_MAX : 0;
  }

  get #slides(): boolean {
    return this.request.spec.onContextFull === 'slide';
  }

  /** The index of the last token. A full context still yields one token, which is never fed back. */
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

/** Returns what the stage with the head is to know of a sequence. */
function beginOf({ sequence, spec, prompt, continued, sample }: GenerationRequest): SequenceBegin {
  return { sequence, prompt, continued, stopIds: spec.stopIds, sampling: samplingOf(spec), sample };
}

/** Returns the fields of a spec that the stage with the head samples by. */
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
