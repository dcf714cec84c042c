// One worker thread behind a piscina pool of exactly one: whoever sends it work reaches exactly the thread that owns the
// blocks. Requests run one at a time, the more urgent first, equals in order. Typed arrays in requests and replies move.

import { Piscina, queueOptionsSymbol } from 'piscina';
import type { PiscinaTask, TaskQueue } from 'piscina';
import { GptdError } from '../model/errors.ts';
import type { WorkerSettings } from '../workers/messages.ts';
import { arraysOf, transferableBuffers, unwrap, type Reply } from '../workers/reply.ts';

/** Urgency of a request, smallest first. Backward passes come before forward ones: they free memory and feed upstream. */
export const PRIORITY = { interactive: 0, backward: 1, forward: 2, weights: 3 } as const;
export type Priority = (typeof PRIORITY)[keyof typeof PRIORITY];

class PriorityQueue implements TaskQueue {
  readonly #lanes: PiscinaTask[][] = Object.values(PRIORITY).map(() => []);

  get size(): number {
    return this.#lanes.reduce((size, lane) => size + lane.length, 0);
  }

  shift(): PiscinaTask | null {
    return this.#lanes.find((lane) => lane.length > 0)?.shift() ?? null;
  }

  push(task: PiscinaTask): void {
    this.#laneOf(task).push(task);
  }

  /** A task that the pool took and could not place goes back to the head of its lane. */
  unshift(task: PiscinaTask): void {
    this.#laneOf(task).unshift(task);
  }

  remove(task: PiscinaTask): void {
    for (const lane of this.#lanes) {
      const at = lane.indexOf(task);
      if (at >= 0) lane.splice(at, 1);
    }
  }

  #laneOf(task: PiscinaTask): PiscinaTask[] {
    const { priority } = task[queueOptionsSymbol] as { priority: Priority };
    return this.#lanes[priority];
  }
}

/** A thread that runs `src/workers/<file>` and answers the requests of `C`. */
export class WorkerThread<C extends { [K in keyof C]: readonly [object, object] }> {
  readonly #pool: Piscina;
  #closed = false;

  constructor(file: string, settings?: WorkerSettings) {
    this.#pool = new Piscina({
      filename: new URL(`../workers/${file}.js`, import.meta.url).href,
      workerData: settings,
      minThreads: 1,
      maxThreads: 1,
      idleTimeout: Infinity,
      concurrentTasksPerWorker: 1,
      // Without it the pool may put a task behind later ones.
      stricterFIFO: true,
      taskQueue: new PriorityQueue(),
    });
  }

  /**
   * Sends one request. Arrays in `input` are transferred and must not be used afterwards. Rejects with the thread's
   * GptdError, with the cause when the thread dies, or with `shutting_down` once it is closed.
   */
  async call<K extends keyof C & string>(
    type: K,
    input: C[K][0],
    { priority = PRIORITY.forward }: { priority?: Priority } = {},
  ): Promise<C[K][1]> {
    // The pool itself would start another thread, which nobody would close.
    if (this.#closed) throw new GptdError('shutting_down', 'The thread is closed: the daemon is shutting down.');
    const request = { ...input, type, [queueOptionsSymbol]: { priority } };
    const reply = (await this.#pool.run(request, { transferList: transferableBuffers(arraysOf(input)) })) as Reply<
      C[K][1]
    >;
    return unwrap(reply);
  }

  /**
   * Calls `listener` when the thread has died. What it held is gone, requests under way have rejected, and the next request
   * meets a new thread.
   */
  onDeath(listener: (error: unknown) => void): void {
    let cause: unknown = new Error('a worker thread ended');
    // Without a listener for `error` an idle thread's death would end the process.
    this.#pool.on('error', (error: unknown) => (cause = error));
    this.#pool.on('workerDestroy', () => {
      if (!this.#closed) listener(cause);
    });
  }

  /** Ends the thread; requests that are under way or waiting reject. May be called twice. */
  async close(): Promise<void> {
    this.#closed = true;
    await this.#pool.destroy();
  }
}
