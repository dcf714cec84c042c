// One worker thread behind a piscina pool of exactly one: whoever sends it work reaches exactly the thread that owns the
// blocks. Requests run one at a time, the more urgent first, equals in order. What moves with them is in the thread's contract.

import { Piscina, queueOptionsSymbol, type PiscinaTask, type TaskQueue } from 'piscina';
import { GptdError } from '../../model/errors.ts';
import { endWithProcess, markEnded, noNativeRuns, untilIdle, type NativeRuns } from '../../workers/ending.ts';
import type { WorkerSettings } from '../../workers/settings.ts';
import {
  transferList,
  unwrap,
  type CallsOf,
  type Moves,
  type Reply,
  type ThreadContract,
} from '../../workers/reply.ts';

/** The urgency of a request, the smallest first. Backward passes come before forward ones: they free memory and feed upstream. */
export const PRIORITY = { interactive: 0, backward: 1, forward: 2, weightGradients: 3 } as const;
export type Priority = (typeof PRIORITY)[keyof typeof PRIORITY];

/**
 * The size of V8's young generation, which has three semi-spaces. A thread touches all of them before it uses one again, and by
 * default they have 48 MB. What lives long is in typed arrays, which lie outside of it.
 */
const YOUNG_GENERATION_MB = 6;

interface ThreadOptions {
  /** The size of the young generation of V8's heap. */
  readonly youngGenerationMb?: number;
}

/** What the queue knows of a request that waits. */
interface Ticket {
  readonly priority: Priority;
  /** Takes the request out of the queue; null while it is not in it. */
  leave: (() => void) | null;
}

class PriorityQueue implements TaskQueue {
  readonly #lanes: PiscinaTask[][] = Object.values(PRIORITY).map(() => []);

  get size(): number {
    return this.#lanes.reduce((size, lane) => size + lane.length, 0);
  }

  shift(): PiscinaTask | null {
    const task = this.#lanes.find((lane) => lane.length > 0)?.shift() ?? null;
    if (task !== null) ticketOf(task).leave = null;
    return task;
  }

  holdsBehind(priority: Priority): boolean {
    return this.#lanes.slice(priority + 1).some((lane) => lane.length > 0);
  }

  push(task: PiscinaTask): void {
    this.#enter(task).push(task);
  }

  /** A task that the pool took and could not place goes back to the head of its lane. */
  unshift(task: PiscinaTask): void {
    this.#enter(task).unshift(task);
  }

  remove(task: PiscinaTask): void {
    const { priority } = ticketOf(task);
    const at = this.#lanes[priority].indexOf(task);
    if (at >= 0) this.#lanes[priority].splice(at, 1);
  }

  /** Returns the lane that the task belongs to, and notes that it is in the queue. */
  #enter(task: PiscinaTask): PiscinaTask[] {
    const ticket = ticketOf(task);
    ticket.leave = () => this.remove(task);
    return this.#lanes[ticket.priority];
  }
}

const ticketOf = (task: PiscinaTask): Ticket => task[queueOptionsSymbol] as Ticket;

/** The thread died during a request, or since what the request is about was put there: the work has to be done again. */
export class WorkerDied extends GptdError {
  constructor(cause: unknown) {
    const why = cause instanceof Error ? cause.message : String(cause);
    super('engine_failed', `A worker thread died: ${why}.`, { cause });
    this.name = 'WorkerDied';
  }
}

type ThreadSettings = Omit<WorkerSettings, 'nativeRuns'>;

interface CallOptions {
  readonly priority?: Priority;
  /** When it aborts before the thread has taken the request up, the request is dropped and rejects with its reason. */
  readonly signal?: AbortSignal;
}

/** Whoever takes requests for a thread. */
export interface Caller<C extends CallsOf<C>> {
  call<K extends keyof C & string>(type: K, input: C[K][0], options?: CallOptions): Promise<C[K][1]>;
  /** Whether requests wait that are not interactive. */
  isWanted(): boolean;
}

/**
 * A thread that runs the contract's file and answers the requests of `C`. When it dies, the requests that were sent to it
 * reject with WorkerDied and another one takes its place, in a pool of its own: piscina itself gives up on a thread that dies
 * while it starts, and would hand the dead thread's requests to one that knows nothing of them.
 */
export class WorkerThread<C extends CallsOf<C>> implements Caller<C> {
  readonly #file: string;
  readonly #moves: { readonly [K in keyof C]?: Moves<C, 0>[K] };
  readonly #settings: ThreadSettings | undefined;
  readonly #youngGenerationMb: number;
  readonly #deathListeners: ((error: unknown) => void)[] = [];
  /** Pools of dead threads, until nothing of them is left. */
  readonly #buried = new Set<Promise<void>>();
  #pool: Piscina;
  /** The pool's queue. */
  #queue = new PriorityQueue();
  #deaths = 0;
  /** The cause of the last death, as soon as it is known. */
  #cause: unknown = null;
  #closed = false;

  constructor(
    { file, requests }: ThreadContract<C>,
    settings?: ThreadSettings,
    { youngGenerationMb = YOUNG_GENERATION_MB }: ThreadOptions = {},
  ) {
    this.#file = file;
    this.#moves = requests;
    this.#settings = settings;
    this.#youngGenerationMb = youngGenerationMb;
    this.#pool = this.#openPool();
  }

  /**
   * Sends one request. What it hands over by the thread's contract must not be used afterwards. Rejects with the thread's
   * GptdError, with WorkerDied when the thread dies, or with `shutting_down` once it is closed.
   */
  call<K extends keyof C & string>(type: K, input: C[K][0], options: CallOptions = {}): Promise<C[K][1]> {
    return this.#send(type, input, { ...options, life: this.#deaths });
  }

  /** Requests to the thread as it is now: once it has died they all reject with WorkerDied, as what it held is gone. */
  bound(): Caller<C> {
    const life = this.#deaths;
    return {
      call: (type, input, options = {}) => this.#send(type, input, { ...options, life }),
      isWanted: () => this.isWanted(),
    };
  }

  isWanted(): boolean {
    return this.#queue.holdsBehind(PRIORITY.interactive);
  }

  /** Calls `listener` when the thread has died; the next request meets a new thread. */
  onDeath(listener: (error: unknown) => void): void {
    this.#deathListeners.push(listener);
  }

  /** Ends the thread; requests that are under way or waiting reject. May be called twice. */
  async close(): Promise<void> {
    this.#closed = true;
    await Promise.all([this.#pool.destroy(), ...this.#buried]);
  }

  async #send<K extends keyof C & string>(
    type: K,
    input: C[K][0],
    { priority = PRIORITY.forward, signal, life }: CallOptions & { readonly life: number },
  ): Promise<C[K][1]> {
    signal?.throwIfAborted();
    // The pool itself would start another thread, which nobody would close.
    if (this.#closed) throw new GptdError('shutting_down', 'The thread is closed: the daemon is shutting down.');
    if (this.#deaths !== life) throw new WorkerDied(this.#cause ?? 'its requests were dropped');
    const ticket: Ticket = { priority, leave: null };
    const request = { ...input, type, [queueOptionsSymbol]: ticket };
    const running = this.#pool.run(request, { transferList: transferList(this.#moves[type]?.(input)) });
    let reply: Reply<C[K][1]>;
    try {
      reply = (await (signal === undefined ? running : untilDropped(running, { ticket, signal }))) as typeof reply;
    } catch (error) {
      if (this.#deaths === life || error === signal?.reason) throw error;
      this.#cause ??= error;
      throw new WorkerDied(this.#cause);
    }
    return unwrap(reply);
  }

  #openPool(): Piscina {
    const nativeRuns = noNativeRuns();
    this.#queue = new PriorityQueue();
    const pool = new Piscina({
      filename: new URL(`../../${this.#file}.js`, import.meta.url).href,
      workerData: { ...this.#settings, nativeRuns },
      minThreads: 1,
      maxThreads: 1,
      idleTimeout: Infinity,
      resourceLimits: { maxYoungGenerationSizeMb: this.#youngGenerationMb },
      concurrentTasksPerWorker: 1,
      // Without this the pool may put a task behind later ones.
      stricterFIFO: true,
      taskQueue: this.#queue,
    });
    // Without a listener for `error` an idle thread's death would end the process.
    pool.on('error', (error: unknown) => (this.#cause ??= error));
    pool.on('workerDestroy', () => this.#bury(pool, nativeRuns));
    const [thread] = pool.threads;
    const terminate = thread.terminate.bind(thread);
    // Whoever terminates the thread, the pool or somebody else, meets it between two native runs.
    thread.terminate = async () => {
      await untilIdle(nativeRuns);
      return await terminate();
    };
    thread.once('exit', endWithProcess(nativeRuns).ended);
    return pool;
  }

  /** The pool is just replacing its thread, so it is destroyed a turn of the loop later. */
  #bury(pool: Piscina, nativeRuns: NativeRuns): void {
    if (this.#closed || pool !== this.#pool) return;
    markEnded(nativeRuns);
    this.#deaths += 1;
    this.#cause = null;
    this.#pool = this.#openPool();
    const gone = new Promise<void>((resolve) => setImmediate(resolve)).then(async () => {
      for (const listener of this.#deathListeners) listener(this.#cause ?? new Error('a worker thread ended'));
      await pool.destroy();
      this.#buried.delete(gone);
    });
    this.#buried.add(gone);
  }
}

/** Piscina's own signal would end the thread of a request that runs, and put one that waits ahead of more urgent ones. */
async function untilDropped<T>(
  running: Promise<T>,
  { ticket, signal }: { ticket: Ticket; signal: AbortSignal },
): Promise<T> {
  return await new Promise((resolve, reject) => {
    const drop = (): void => {
      if (ticket.leave === null) return;
      ticket.leave();
      reject(signal.reason as Error);
    };
    signal.addEventListener('abort', drop, { once: true });
    running.then(resolve, reject).finally(() => signal.removeEventListener('abort', drop));
  });
}
