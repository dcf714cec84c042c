// The queue leads each job from its submission to exactly one terminal event. Each kind of job waits in its lane, so a generation
// does not wait behind a long training run. Within a lane the job with the higher priority goes first, and jobs of equal priority
// go in order of submission. States live in the store and change together with their events, so a restart finds them as they
// were.

import { randomUUID } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { isDeepStrictEqual } from 'node:util';
import { assert, DiskFull, errorData, GptdError, type ErrorData } from '../../model/errors.ts';
import type { StoredJob } from '../../workers/store/messages.ts';
import { DiskWatch } from './disk-watch.ts';
import { JobHalted, type JobContext, type Services } from './context.ts';
import type { Kind, Kinds } from './kind.ts';
import { submissionOf } from './submission.ts';
import type { JobTransition } from '../operations/metrics.ts';
import { modelOf, referenceOf } from '../threads/model-reference.ts';
import { isTerminal, JOB_TRANSITIONS, type JobEventBody, type JobRecord, type JobState } from '../protocol/jobs.ts';
import type { JobKind, JobSpecs } from '../protocol/kinds.ts';
import { VERSION } from '../protocol/daemon.ts';
import type { MethodParams, MethodResults } from '../protocol/methods.ts';
import { describeIssue } from '../protocol/errors.ts';
import { admit } from '../threads/memory.ts';
import { WorkerDied } from '../threads/worker-thread.ts';

/** After this many deaths of worker threads, with no new event between them, the job is taken for their cause. */
const DEATHS_IN_A_ROW_MAX = 3;

/** The bytes of specs and results in one reply to `job.list`, which always holds at least one job. */
const LIST_BYTES_MAX = 4 << 20;

/** The time that a shutdown waits for jobs to save their work. What is not saved by then is done again after the next start. */
const STOP_GRACE_MS = 8000;

/** What the queue has to know of a live job's kind. */
interface LiveKind extends Pick<Kind, 'lane' | 'atOnce' | 'trains'> {
  readonly name: JobTransition['kind'];
  makes?(spec: unknown): string;
  run(context: Omit<JobContext, 'spec'> & { readonly spec: unknown }): Promise<unknown>;
}

interface Live {
  readonly jobId: string;
  readonly kind: LiveKind;
  readonly spec: unknown;
  readonly priority: number;
  /** Whether the job ran before, in this daemon or an earlier one. */
  ranBefore: boolean;
  /** Whether the job was running when an earlier daemon ended. Such a job does not wait behind jobs that have not begun. */
  readonly interrupted: boolean;
  state: 'queued' | 'running' | 'paused';
  /** The time at which the job took its state, on the monotonic clock. */
  sinceMs: number;
  /** Aborts when the job is cancelled, and when a shutdown has waited for it long enough. */
  readonly stop: AbortController;
  halt: AbortController;
  running: Promise<void> | null;
  /** The number of new events, without log lines. A job that runs again emits its old events first, which do not count. */
  newsCount: number;
}

export interface JobCounts {
  readonly queued: number;
  readonly running: number;
  readonly paused: number;
}

export interface JobsOptions {
  readonly kinds: Kinds;
  readonly queueLimit: number;
  readonly onFatal: (error: unknown) => void;
  /** Is called at every change of a job's state. */
  readonly onMoved: (transition: JobTransition) => void;
  /** Resolves to the error to report when the stored data of the model that `reference` names are damaged. */
  readonly onDamage: (error: GptdError, reference: string) => Promise<GptdError>;
}

export class Jobs {
  readonly #services: Services;
  readonly #options: JobsOptions;
  /** The jobs that have not ended, in order of submission. */
  readonly #live = new Map<string, Live>();
  #closing = false;
  readonly #diskWatch: DiskWatch;

  constructor(services: Services, options: JobsOptions) {
    this.#services = services;
    this.#options = options;
    this.#diskWatch = new DiskWatch(services.store, (jobId) => void this.resume(jobId).catch(options.onFatal));
  }

  /**
   * Takes up the jobs of the store that have not ended: those that ran when the daemon stopped are queued again. `start` runs
   * them. A job that this version cannot read fails when it is run, and the others go on.
   */
  async recover(): Promise<void> {
    const { jobs } = await this.#services.store.call('recoverJobs', {});
    for (const job of jobs) this.#add(job, readJob(job, this.#options.kinds));
  }

  start(): void {
    this.#dispatch();
  }

  /** Refuses a job that is certain to fail, and stores any other. The reply means that the job is durable. */
  async submit({
    kind,
    spec,
    key,
    priority,
  }: {
    kind: JobKind;
    spec: JobSpecs[JobKind];
    key?: string | undefined;
    priority: number;
  }): Promise<JobRecord> {
    if (this.#closing)
      throw new GptdError('shutting_down', 'The daemon is shutting down: submit again when it is back.');
    const known = key === undefined ? null : (await this.#services.store.call('findJob', { key })).job;
    if (known === null) {
      await this.#check(this.#options.kinds[kind], spec);
    } else if (known.kind === kind && isDeepStrictEqual(readJob(known, this.#options.kinds).spec, spec)) {
      // Another version may have stored the same spec in another form.
      return recordOf(known);
    }
    const submission = { jobId: randomUUID(), kind, spec, key, priority, queueLimit: this.#options.queueLimit };
    const { job, created, event } = await this.#services.store.call('submitJob', submission);
    if (created) {
      if (event !== null) this.#services.events.publish(event);
      this.#add(job, { kind: this.#options.kinds[kind], spec });
      this.#dispatch();
    }
    return recordOf(job);
  }

  /** Refuses a job that is certain to fail later, with the sentence that it would fail with. */
  async #check(kind: Kind, spec: JobSpecs[JobKind]): Promise<void> {
    const isComing = (model: string): boolean => [...this.#live.values()].some((other) => madeBy(other) === model);
    const submission = submissionOf(this.#services, { spec, isComing });
    await kind.check(submission);
    const need = await kind.needs(submission);
    if (need !== null) admit(need, this.#services.memoryBudgetBytes);
  }

  async get(jobId: string): Promise<JobRecord> {
    return recordOf(await this.#services.store.call('getJob', { jobId }));
  }

  async list(filters: MethodParams['job.list']): Promise<MethodResults['job.list']> {
    const { jobs, hasMore } = await this.#services.store.call('listJobs', {
      ...filters,
      bytesMax: LIST_BYTES_MAX,
    });
    return { jobs: jobs.map(recordOf), ...(hasMore ? { next: jobs[jobs.length - 1].jobId } : {}) };
  }

  /** Ends a job, which keeps what it has stored. Cancelling an ended job changes nothing. Resolves when the job has ended. */
  async cancel(jobId: string): Promise<JobRecord> {
    const live = this.#live.get(jobId);
    if (live === undefined) return await this.get(jobId);
    live.stop.abort(new GptdError('cancelled', 'The job was cancelled.'));
    if (live.running === null) await this.#end(live, { type: 'cancelled', data: {} });
    else await live.running;
    return await this.get(jobId);
  }

  /** Stops a queued job, or a running one once it has saved its work. Throws `conflict` for an ended job. */
  async pause(jobId: string): Promise<JobRecord> {
    const live = this.#live.get(jobId);
    if (live === undefined) throw await this.#ended(jobId, 'paused');
    if (live.state === 'queued' && !isCancelled(live)) {
      await this.#setState(live, 'paused', 'Paused before it started.');
    }
    if (live.state === 'running') {
      live.halt.abort();
      await live.running;
    }
    return await this.get(jobId);
  }

  /** Queues a paused job again. A job in another state stays as it is. Throws `conflict` for an ended job. */
  async resume(jobId: string): Promise<JobRecord> {
    const live = this.#live.get(jobId);
    if (live === undefined) throw await this.#ended(jobId, 'resumed');
    // A job that is still saving its work is paused first.
    if (live.running !== null && live.halt.signal.aborted) await live.running;
    if (live.state === 'paused' && !isCancelled(live)) {
      this.#diskWatch.forget(jobId);
      await this.#setState(live, 'queued', 'Resumed.');
      this.#dispatch();
    }
    return await this.get(jobId);
  }

  counts(): JobCounts {
    const states = [...this.#live.values()].map(({ state }) => state);
    const count = (wanted: Live['state']): number => states.filter((state) => state === wanted).length;
    return { queued: count('queued'), running: count('running'), paused: count('paused') };
  }

  /** Whether a job that has not ended uses the model. */
  uses(model: string): boolean {
    return [...this.#live.values()].some(({ spec }) => modelOf(spec) === model);
  }

  /** Halts the running jobs and waits for them. Queued jobs stay queued in the store. */
  async close(): Promise<void> {
    this.#closing = true;
    this.#diskWatch.close();
    for (const { halt } of this.#live.values()) halt.abort();
    const grace = setTimeout(() => {
      for (const { stop } of this.#live.values()) stop.abort(new JobHalted());
      this.#services.events.end();
    }, STOP_GRACE_MS);
    await Promise.allSettled([...this.#live.values()].flatMap(({ running }) => (running === null ? [] : [running])));
    await this.#services.events.flush().finally(() => clearTimeout(grace));
  }

  async #ended(jobId: string, wish: string): Promise<GptdError> {
    const { state } = await this.get(jobId);
    return new GptdError('conflict', `The job ${jobId} is ${state}: only a job that has not ended can be ${wish}.`);
  }

  #add(job: StoredJob, { kind, spec }: Pick<Live, 'kind' | 'spec'>): void {
    const state = job.state === 'paused' ? 'paused' : 'queued';
    const live: Live = {
      jobId: job.jobId,
      kind,
      spec,
      priority: job.priority,
      ranBefore: job.startedAt !== null,
      interrupted: job.state === 'running',
      state,
      sinceMs: performance.now(),
      stop: abortable(),
      halt: abortable(),
      running: null,
      newsCount: 0,
    };
    this.#live.set(job.jobId, live);
    const { jobId } = live;
    this.#options.onMoved({ jobId, kind: kind.name, model: modelOf(spec), from: null, to: state, elapsedMs: 0 });
  }

  #dispatch(): void {
    if (this.#closing) return;
    const taken = new Map<string, number>();
    for (const { state, kind } of this.#live.values()) {
      if (state === 'running') taken.set(kind.lane, (taken.get(kind.lane) ?? 0) + 1);
    }
    // The sort is stable: jobs of equal urgency stay in order of submission.
    for (const live of [...this.#live.values()].sort(byUrgency)) {
      const { lane, atOnce } = live.kind;
      const busy = taken.get(lane) ?? 0;
      if (live.state !== 'queued' || isCancelled(live)) continue;
      if (busy >= atOnce || this.#waitsForModel(live)) continue;
      taken.set(lane, busy + 1);
      this.#move(live, 'running');
      live.running = this.#run(live).catch(this.#options.onFatal);
    }
  }

  /** Whether an earlier job is about to make the model that this job needs, or another training of the model comes first. */
  #waitsForModel(job: Live): boolean {
    const name = modelOf(job.spec);
    let submittedBefore = true;
    for (const other of this.#live.values()) {
      if (other === job) submittedBefore = false;
      else if (modelOf(other.spec) === name) {
        if (madeBy(other) === name && submittedBefore) return true;
        const bothTrain = other.kind.trains === true && job.kind.trains === true;
        if (bothTrain && trainsFirst(other, job, submittedBefore)) return true;
      }
    }
    return false;
  }

  async #run(live: Live): Promise<void> {
    const { events, stages, engine } = this.#services;
    const { jobId } = live;
    const started: JobEventBody = live.ranBefore
      ? { type: 'log', data: { message: 'Started again.' } }
      : { type: 'started', data: { workers: stages.length, engine: `${engine.name} ${engine.version}` } };
    // The log keeps events in order, so the work need not wait until the `started` event is durable, and its requests reach the
    // store first.
    const work = this.#runHealing(live);
    // This holds from the next run on, including one after a thread's death: the context of this run is made by now.
    live.ranBefore = true;
    void events.emit(jobId, started, { state: 'running' });
    let outcome: JobEventBody;
    try {
      outcome = { type: 'succeeded', data: { result: await work } };
    } catch (error) {
      if (error instanceof JobHalted && !isCancelled(live)) {
        live.running = null;
        if (!this.#closing) {
          live.halt = abortable();
          await this.#setState(live, 'paused', 'Paused.');
          this.#dispatch();
        }
        return;
      }
      if (error instanceof DiskFull && !isCancelled(live)) {
        await this.#pauseForRoom(live, error);
        return;
      }
      outcome = isCancelled(live)
        ? { type: 'cancelled', data: {} }
        : { type: 'failed', data: { error: errorData(await this.#explained(live, error)) } };
    }
    await this.#end(live, outcome);
  }

  async #explained({ spec }: Live, error: unknown): Promise<unknown> {
    const reference = referenceOf(spec);
    if (!(error instanceof GptdError) || error.code !== 'corrupt' || reference === undefined) return error;
    return await this.#options.onDamage(error, reference);
  }

  async #pauseForRoom(live: Live, { message, freeBytesNeeded }: DiskFull): Promise<void> {
    live.running = null;
    if (this.#closing) return;
    live.halt = abortable();
    await this.#setState(live, 'paused', `Paused. ${message} The job goes on by itself when there is room.`);
    this.#diskWatch.wait(live.jobId, freeBytesNeeded);
    this.#dispatch();
  }

  /**
   * Runs the job, and runs it again when a worker thread has died under it: the job goes on from what it has saved, and no event
   * is stored twice. A job emits no event before its first wait, so its events follow the one that `#run` emits.
   */
  async #runHealing(live: Live): Promise<unknown> {
    for (let deaths = 1; ; deaths++) {
      const { newsCount } = live;
      try {
        return await this.#runner(live);
      } catch (error) {
        if (!(error instanceof WorkerDied) || isCancelled(live)) throw error;
        if (live.newsCount > newsCount) deaths = 1;
        if (deaths >= DEATHS_IN_A_ROW_MAX) {
          const message = `Worker threads died ${deaths} times in a row under this job. The last time: ${error.message}`;
          throw new GptdError('engine_failed', message, { cause: error });
        }
        const message = `${error.message} The job goes on from what it has saved.`;
        await this.#services.events.emit(live.jobId, { type: 'log', data: { message } });
      }
    }
  }

  #runner(live: Live): Promise<unknown> {
    const { jobId, kind } = live;
    return kind.run({
      jobId,
      spec: live.spec,
      services: this.#services,
      isRepeated: live.ranBefore,
      cancelled: live.stop.signal,
      halted: live.halt.signal,
      emit: (body, options) => {
        const emitted = this.#services.events.emit(jobId, body, options);
        const count = (event: unknown): void => {
          if (event !== null && body.type !== 'log') live.newsCount += 1;
        };
        emitted.then(count, () => undefined);
        return emitted;
      },
    });
  }

  /** Emits the terminal event. The job leaves the live jobs when that event is durable. */
  async #end(live: Live, outcome: JobEventBody): Promise<void> {
    assert(isTerminal(outcome.type), `${outcome.type} ends no job`);
    await this.#services.events.emit(live.jobId, outcome, { key: 'end', state: outcome.type });
    // Two cancels of a waiting job both come here, but the job ends once.
    if (!this.#live.delete(live.jobId)) return;
    this.#move(live, outcome.type, outcome.type === 'failed' ? outcome.data.error : undefined);
    this.#diskWatch.forget(live.jobId);
    this.#services.tidying.soon();
    this.#dispatch();
  }

  #move(live: Live, to: JobState, error?: ErrorData): void {
    const nowMs = performance.now();
    const { jobId, kind, state: from } = live;
    const model = modelOf(live.spec);
    assert(JOB_TRANSITIONS[from].includes(to), `the job ${jobId} cannot go from ${from} to ${to}`);
    this.#options.onMoved({ jobId, kind: kind.name, model, from, to, elapsedMs: nowMs - live.sinceMs, error });
    live.sinceMs = nowMs;
    if (!isTerminal(to)) live.state = to;
  }

  async #setState(live: Live, state: Live['state'], message: string): Promise<void> {
    this.#move(live, state);
    await this.#services.events.emit(live.jobId, { type: 'log', data: { message } }, { state });
  }
}

const isCancelled = ({ stop: { signal } }: Live): boolean => signal.aborted && !(signal.reason instanceof JobHalted);

/** Returns the name of the model that the job is about to make, if it makes one. */
const madeBy = ({ kind, spec }: Pick<Live, 'kind' | 'spec'>): string | undefined => kind.makes?.(spec);

/**
 * Returns the kind and the spec of a stored job. Fields that the spec does not have get their defaults. A job that this version cannot
 * read has a kind that says why.
 */
function readJob({ jobId, kind: name, spec }: StoredJob, kinds: Kinds): Pick<Live, 'kind' | 'spec'> {
  const kind: Kind | undefined = Object.values(kinds).find((known) => known.name === name);
  if (kind === undefined) {
    const message = `The job ${jobId} is of the kind "${name}", which gptd ${VERSION} does not know: start the version that it was submitted to.`;
    return { kind: unreadable('unknown', message), spec };
  }
  const parsed = kind.spec.safeParse(spec);
  if (parsed.success) return { kind, spec: parsed.data };
  const message = `The stored spec of the job ${jobId} cannot be read by gptd ${VERSION}: ${describeIssue(parsed.error)}.`;
  return { kind: unreadable(kind.name, message), spec };
}

/** The kind of a job that does nothing but fail. */
const unreadable = (name: LiveKind['name'], message: string): LiveKind => ({
  name,
  lane: 'unreadable',
  atOnce: 1,
  run: () => Promise.reject(new GptdError('incompatible', message)),
});

const recordOf = (job: StoredJob): JobRecord => job;

/** Compares two jobs by urgency, for a stable sort of jobs that are in order of submission. */
const byUrgency = (a: Live, b: Live): number =>
  Number(b.interrupted) - Number(a.interrupted) || b.priority - a.priority;

/**
 * Whether `other` is finished before `job`, when both train one model. The one that has begun goes first, because its steps
 * follow those of its own checkpoints; otherwise the more urgent one does.
 */
function trainsFirst(other: Live, job: Live, submittedBefore: boolean): boolean {
  if (other.ranBefore !== job.ranBefore) return other.ranBefore;
  const order = byUrgency(other, job);
  return order === 0 ? submittedBefore : order < 0;
}

/**
 * Every request of a job that waits for a thread listens to the signal, and so does each of its samples. Many listeners are
 * therefore no leak.
 */
function abortable(): AbortController {
  const controller = new AbortController();
  setMaxListeners(0, controller.signal);
  return controller;
}
