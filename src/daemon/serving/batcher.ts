// A batcher advances all generations of one loaded model together (continuous batching). Each step takes the newest token of
// every running sequence, guesses behind it, and at most one chunk of prompts. So no sequence waits longer for its next token
// than a step with one chunk takes. Sequences join and leave between steps. Rows do not depend on their neighbours, so nothing
// here changes a bit.

import { checkTokenIds, type GptConfig } from '../../model/config.ts';
import { assert, GptdError } from '../../model/errors.ts';
import type { SampledRows, ServeFollow } from '../../workers/serving/messages.ts';
import { JobHalted } from '../jobs/context.ts';
import { commonLength, Retained } from './retained.ts';
import { Sequence, type Generation, type GenerationRequest } from './sequence.ts';
import { serveRows, type LoadedModel } from './rows.ts';
import { PRIORITY } from '../threads/worker-thread.ts';

/**
 * The rows of prompts in one step: `shared` while other sequences wait for their next token, and `alone` when none does.
 * docs/guide/serving.md promises these numbers.
 */
export const PREFILL_ROWS = { shared: 64, alone: 512 } as const;
/** The largest number of guessed rows in one step. They cost little as long as reading the weights takes longest. */
const DRAFT_ROWS_MAX = 16;
/**
 * A stage goes on by itself for at most this many tokens of a sequence, and for at most this time: training waits so long for its
 * turn.
 */
export const FOLLOW_TOKENS_MAX = 64;
const FOLLOW_MS = 15;
/** A common beginning that is shorter than this is not worth its copy. */
const PREFIX_LENGTH_MIN = 16;

export interface BatchLimits {
  /** The number of sequences that run at once. Others wait in order. */
  readonly sequencesMax: number;
  /** The number of positions that the caches of running and kept sequences may have together. */
  readonly cachedTokensMax: number;
}

/** Says what a step does for one sequence. */
interface StepShare {
  readonly sequence: Sequence;
  /** The number of known ids that the step computes. */
  readonly count: number;
  /** The largest number of tokens that the step, and the steps that follow it, yield; null while a prompt is read. */
  readonly tokensMax: number | null;
}

/** One request to the stages. */
interface Step {
  readonly shares: readonly StepShare[];
  /**
   * Resolves to one list for this step, and one for each step that the stage has gone on with: each has an entry for every share.
   * Resolves to null when the step was dropped.
   */
  readonly reply: Promise<readonly (readonly (SampledRows | null)[])[] | null>;
}

export class Batcher {
  readonly #model: LoadedModel;
  readonly #limits: BatchLimits;
  readonly #waiting: Sequence[] = [];
  #running: Sequence[] = [];
  readonly #retained: Retained;
  #looping = false;
  /** Drops the step that was asked for ahead, unless it has begun. */
  #ahead = new AbortController();
  /** A number that is shared with the stage. When it has changed, the stage does not go on by itself behind its current step. */
  readonly #interrupt = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT));

  constructor(model: LoadedModel, limits: BatchLimits) {
    this.#model = model;
    this.#limits = limits;
    this.#retained = new Retained(model.config.context_length);
  }

  /** The numbers of sequences that run and that wait. */
  get load(): { readonly running: number; readonly waiting: number } {
    return { running: this.#running.length, waiting: this.#waiting.length };
  }

  /**
   * Generates until the sequence ends, or is cancelled or halted. Throws `invalid_spec` for a prompt that the model cannot take.
   */
  async generate(request: GenerationRequest): Promise<Generation> {
    const { config } = this.#model;
    checkPrompt(request.prompt, config);
    try {
      return await new Promise<Generation>((resolve, reject) => {
        const queued = new Sequence({ request, context: config.context_length, resolve, reject });
        if (queued.endedBefore()) return;
        assert(queued.room <= this.#limits.cachedTokensMax, 'a full context fits into the cache');
        for (const signal of [request.cancelled, request.halted]) {
          signal.addEventListener('abort', () => this.#interruptSteps(), { once: true });
        }
        this.#waiting.push(queued);
        this.#interruptSteps();
        if (!this.#looping) void this.#loop();
      });
    } catch (error) {
      this.#end([request.sequence], { keepCaches: false });
      throw error;
    }
  }

  /** Makes the step under way the last one with the present sequences, because one has come or goes. */
  #interruptSteps(): void {
    Atomics.add(this.#interrupt, 0, 1);
    this.#ahead.abort();
  }

  async #loop(): Promise<void> {
    this.#looping = true;
    let ahead: Step | null = null;
    for (;;) {
      this.#leave();
      this.#admit();
      if (this.#running.length === 0) break;
      const step: Step = ahead ?? this.#start();
      ahead = this.#startBehind(step);
      try {
        for (const sampled of (await step.reply) ?? []) {
          for (const [i, share] of step.shares.entries()) this.#settle(share, sampled[i]);
        }
      } catch (error) {
        // A stage has died, or the engine has failed, so what the caches hold is unknown.
        ahead = null;
        this.#retained.clear();
        for (const sequence of [...this.#running.splice(0), ...this.#waiting.splice(0)]) sequence.reject(error);
      }
    }
    this.#looping = false;
  }

  /** Rejects and drops the sequences whose jobs were cancelled or halted. */
  #leave(): void {
    const stays = (sequence: Sequence): boolean => {
      const { cancelled, halted } = sequence.request;
      if (cancelled.aborted) sequence.reject(cancelled.reason);
      else if (halted.aborted) sequence.reject(new JobHalted());
      else return true;
      return false;
    };
    this.#running = this.#running.filter(stays);
    const waiting = this.#waiting.splice(0).filter(stays);
    this.#waiting.push(...waiting);
  }

  /** Starts the waiting sequences in order, as long as there is room. Kept caches make room, the least recently used first. */
  #admit(): void {
    while (this.#waiting.length > 0 && this.#running.length < this.#limits.sequencesMax) {
      const [next] = this.#waiting;
      const used = this.#running.reduce((sum, { room }) => sum + room, 0);
      if (used + next.room > this.#limits.cachedTokensMax) break;
      this.#waiting.shift();
      this.#fork(next);
      this.#running.push(next);
      // Caches that the next step copies from stay until then.
      const spared = new Set(this.#running.map(({ fork }) => fork?.from));
      const evicted = this.#retained.evict(this.#limits.cachedTokensMax - used - next.room, spared);
      next.start();
      if (evicted.length > 0) this.#end(evicted, { keepCaches: false });
    }
    for (const [i, waiting] of this.#waiting.entries()) waiting.waitAt(i + 1);
  }

  /**
   * Finds the longest beginning of the prompt that another cache holds. The prompt's last row is always computed, for its logits.
   */
  #fork(sequence: Sequence): void {
    const { window } = sequence;
    let best: { from: string; length: number } | null = null;
    // A sequence that has yet to copy its own beginning from another cache has nothing in its cache.
    const running = this.#running
      .filter(({ fork }) => fork === null)
      .map(({ name, window, position }) => ({ name, ids: window.slice(0, position) }));
    for (const { name, ids } of [...running, ...this.#retained.entries()]) {
      const length = Math.min(commonLength(ids, window), window.length - 1);
      if (length >= PREFIX_LENGTH_MIN && length > (best?.length ?? 0)) best = { from: name, length };
    }
    if (best !== null) this.#retained.touch(best.from);
    sequence.forkFrom(best);
  }

  /** Sends the newest tokens of all running sequences, and a chunk of prompts, through the stages. */
  #start(): Step {
    // The cache that a beginning was to be copied from may have slid or gone while there was no room for the prompt.
    for (const sequence of this.#running) if (sequence.fork !== null) this.#fork(sequence);
    const decoding = this.#running.filter((sequence) => sequence.decoding).length;
    const guessMax = guessesOfEach(decoding);
    let prefillRows: number = decoding > 0 ? PREFILL_ROWS.shared : PREFILL_ROWS.alone;
    const composed = this.#running.flatMap((sequence) => {
      const next = sequence.next({ prefillRows, guessMax });
      if (!sequence.decoding) prefillRows -= next?.share.rowCount ?? 0;
      return next === null ? [] : [{ sequence, ...next }];
    });
    const ids = composed.flatMap(({ rows }) => rows);
    const shares = composed.map(({ share }) => share);
    const begins = composed.flatMap(({ begin }) => begin ?? []);
    const reply = serveRows(this.#model, { ids, shares, begins, priority: PRIORITY.interactive });
    return {
      shares: composed.map(({ sequence, share: { rowCount, sample } }) => {
        const drafted = sample?.drafts.length ?? 0;
        return { sequence, count: rowCount - drafted, tokensMax: sample && drafted + 1 };
      }),
      reply: reply.then(({ sampled }) => [sampled!]),
    };
  }

  /**
   * Asks for the step behind the one that is under way, and for more steps behind that. It does so when the next step lacks only
   * the tokens that this one samples, and the stage with the head can put them in by itself, so that it does not wait for them to
   * come here and back. Returns null while something else is to be done first.
   */
  #startBehind({ shares }: Step): Step | null {
    const { lease, stages } = this.#model;
    const [{ thread }] = stages;
    // Training would never have its turn if a step always waited before it.
    if (stages.length > 1 || thread.isWanted()) return null;
    const guessMax = guessesOfEach(this.#running.length);
    const under = new Map(shares.map(({ sequence, tokensMax }) => [sequence, tokensMax]));
    const follows: ServeFollow[] = [];
    for (const sequence of this.#running) {
      const tokensMax = under.get(sequence) ?? null;
      const follow = tokensMax === null ? null : sequence.follow({ tokensMax, guessMax });
      if (follow === null) return null;
      follows.push(follow);
    }
    const { signal } = (this.#ahead = new AbortController());
    const request = {
      lease,
      follows,
      tokensMax: FOLLOW_TOKENS_MAX,
      spanMs: FOLLOW_MS,
      interrupt: this.#interrupt,
      turn: Atomics.load(this.#interrupt, 0),
    };
    const reply = thread.call('serveFollow', request, { priority: PRIORITY.interactive, signal }).then(
      ({ steps }) => steps,
      (error: unknown) => {
        if (error === signal.reason) return null;
        throw error;
      },
    );
    // It may reject when nothing waits for it any more.
    reply.catch(() => undefined);
    const tokensMax = FOLLOW_TOKENS_MAX + guessMax;
    return { shares: this.#running.map((sequence) => ({ sequence, count: 1, tokensMax })), reply };
  }

  #settle({ sequence, count }: StepShare, sampled: SampledRows | null): void {
    // The sequence may have left meanwhile.
    if (!this.#running.includes(sequence)) return;
    if (!sequence.settle({ count, sampled })) return;
    this.#running = this.#running.filter((other) => other !== sequence);
    // The stage knows nothing of stop strings, so it goes on with a sequence whose text has reached one.
    if (sequence.isStoppedByText) this.#interruptSteps();
    const keep = sequence.position >= PREFIX_LENGTH_MIN;
    if (keep) {
      const beyond = sequence.isStoppedByText ? FOLLOW_TOKENS_MAX + DRAFT_ROWS_MAX : 0;
      const positions = Math.min(sequence.room, sequence.position + beyond);
      this.#retained.add(sequence.name, sequence.window.slice(0, sequence.position), positions);
    }
    this.#end([sequence.name], { keepCaches: keep });
  }

  #end(sequences: readonly string[], { keepCaches }: { keepCaches: boolean }): void {
    const { lease, stages } = this.#model;
    for (const { thread } of stages) {
      thread
        .call('serveEnd', { lease, sequences, keepCaches }, { priority: PRIORITY.interactive })
        // A thread that has died has taken the caches with it.
        .catch(() => undefined);
    }
  }
}

/** Returns the number of guesses that each of so many sequences may have in a step. */
const guessesOfEach = (sequences: number): number => (sequences === 0 ? 0 : Math.floor(DRAFT_ROWS_MAX / sequences));

function checkPrompt(ids: readonly number[], config: GptConfig): void {
  checkTokenIds(ids, { config, what: 'The prompt' });
  if (ids.length === 0) throw new GptdError('invalid_spec', 'The prompt is empty: give at least one token.');
  const context = config.context_length;
  if (ids.length <= context) return;
  throw new GptdError(
    'invalid_spec',
    `The prompt has ${ids.length} tokens: the model's context holds ${context}. Shorten the prompt.`,
  );
}
