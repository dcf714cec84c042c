// All generations of one loaded model, advanced together (continuous batching): each step takes the newest token of every
// running sequence, guesses behind it, and at most one chunk of prompts, so that nobody waits longer for the next token than a
// step with one chunk takes. Sequences join and leave between steps. Rows do not know their neighbours, so nothing here changes a bit.

import { checkTokenIds, type GptConfig } from '../../model/config.ts';
import { assert, GptdError } from '../../model/errors.ts';
import type { SampledRows, ServeFollow } from '../../workers/serving/messages.ts';
import { JobHalted } from '../jobs/context.ts';
import { commonLength, Retained } from './retained.ts';
import { Sequence, type Generation, type GenerationRequest } from './sequence.ts';
import { serveRows, type LoadedModel } from './serve-rows.ts';
import { PRIORITY } from '../threads/worker-thread.ts';

/** Rows of prompts in one step while other sequences wait for their next token, and when none does: docs/guide/serving.md promises it. */
export const PREFILL_ROWS = { shared: 64, alone: 512 } as const;
/** Guessed rows in one step: they cost little as long as reading the weights takes longest. */
const DRAFT_ROWS_MAX = 16;
/** How long a stage goes on by itself, in tokens of a sequence and in time: training waits so long for its turn. */
export const FOLLOW_TOKENS_MAX = 64;
const FOLLOW_MS = 15;
/** A shared beginning shorter than this is not worth its copy. */
const PREFIX_LENGTH_MIN = 16;

export interface BatchLimits {
  /** Sequences that run at once; others wait in order. */
  readonly sequencesMax: number;
  /** Positions that the caches of running and kept sequences may have together. */
  readonly cachedTokensMax: number;
}

/** What a step does for one sequence. */
interface StepShare {
  readonly sequence: Sequence;
  /** Known ids that it computes. */
  readonly count: number;
  /** Tokens that it, and the steps that follow it, yield at the most; null while a prompt goes in. */
  readonly tokensMax: number | null;
}

/** What is asked of the stages at once. */
interface Step {
  readonly shares: readonly StepShare[];
  /** An entry a share, of this step and of those that the stage has gone on with; null when it was dropped. */
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
  /** Shared with the stage, which does not go on by itself behind the step that it is at when this is no longer what it was. */
  readonly #interrupt = new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT));

  constructor(model: LoadedModel, limits: BatchLimits) {
    this.#model = model;
    this.#limits = limits;
    this.#retained = new Retained(model.config.context_length);
  }

  /** Sequences that run or wait. */
  get load(): { readonly running: number; readonly waiting: number } {
    return { running: this.#running.length, waiting: this.#waiting.length };
  }

  /** Generates until the end, a cancel or a halt. Throws `invalid_spec` for a prompt that the model cannot take. */
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

  /** Somebody has come or goes: the step that is under way is the last one without them, or with them. */
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
        // A stage is gone, or the engine failed: what the caches hold is unknown.
        ahead = null;
        this.#retained.clear();
        for (const sequence of [...this.#running.splice(0), ...this.#waiting.splice(0)]) sequence.reject(error);
      }
    }
    this.#looping = false;
  }

  /** Lets go of sequences whose jobs were cancelled or halted. */
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

  /** Starts what waits, in order, as long as there is room; kept caches make room, the least recently used first. */
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

  /** Finds the longest beginning of the prompt that another cache holds; its last row is always computed, for its logits. */
  #fork(sequence: Sequence): void {
    const { window } = sequence;
    let best: { from: string; length: number } | null = null;
    // One that is still to take its own beginning from somewhere has nothing yet.
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

  /** Sends the newest tokens of all that run, and a chunk of prompts, through the stages. */
  #start(): Step {
    // A cache that a beginning was to be taken from may have slid or gone while there was no room for the prompt.
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
   * Asks for the step behind one that is under way, and for more behind that, when nothing but the tokens that this one samples is
   * missing and the stage with the head can put them in by itself: so it does not wait for them to come here and back. Null while
   * something else is to be done first.
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
    // Nobody may be left who waits for it.
    reply.catch(() => undefined);
    const tokensMax = FOLLOW_TOKENS_MAX + guessMax;
    return { shares: this.#running.map((sequence) => ({ sequence, count: 1, tokensMax })), reply };
  }

  #settle({ sequence, count }: StepShare, sampled: SampledRows | null): void {
    // It has been let go of meanwhile.
    if (!this.#running.includes(sequence)) return;
    if (!sequence.settle({ count, sampled })) return;
    this.#running = this.#running.filter((other) => other !== sequence);
    // The stage goes on with a sequence whose text has reached a stop string, which it knows nothing of.
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
        // The thread is gone, and the caches with it.
        .catch(() => undefined);
    }
  }
}

/** Guesses that each of so many sequences may have in a step. */
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
