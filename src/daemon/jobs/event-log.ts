// This is the daemon's end of the event log. The events of all jobs go to the store in groups, one transaction after another;
// subscribers hear of an event only after it is durable. An event with a key that its job has used already is dropped, so a job
// that runs again after a crash may emit all its events again, and each is stored once.

import { DiskFull } from '../../model/errors.ts';
import type { StoredEvent } from '../../workers/store/messages.ts';
import type { JobEventBody, JobState } from '../protocol/jobs.ts';
import type { StoreClient } from '../threads/store-client.ts';

/** The time between two attempts to write to a full disk. */
const RETRY_MS = 250;
/** The largest number of events in one transaction. */
const GROUP_MAX = 512;
/**
 * The time from one transaction to the next, in which events that may wait are gathered. A transaction and its way to a reader
 * take about 1 ms of a core, which a fast stream cannot spare for every token. Readers do not see the difference.
 */
const GATHER_MS = 30;

export interface EmitOptions {
  /** The event's key within its job: a later event with the same key is dropped. */
  readonly key?: string | undefined;
  /** The state that the job takes with the event. */
  readonly state?: JobState | undefined;
  /** Whether the event may wait for later ones, up to GATHER_MS after the last transaction began. */
  readonly mayWait?: boolean;
}

interface Pending {
  readonly jobId: string;
  readonly body: JobEventBody;
  readonly options: EmitOptions;
  readonly resolve: (event: StoredEvent | null) => void;
  readonly reject: (error: unknown) => void;
}

export type EventListener = (event: StoredEvent) => void;

export class EventLog {
  readonly #store: StoreClient;
  readonly #listeners = new Map<string, Set<EventListener>>();
  #pending: Pending[] = [];
  #writing = false;
  /** The time at which the last transaction was sent, on the monotonic clock. */
  #sentAt = -Infinity;
  /** Whether the pending events are to be written at once. */
  #urgent = false;
  /** Ends the gathering that is under way. */
  #endGathering: () => void = () => undefined;
  #ending = false;
  /** The promise of the newest event. Events become durable in the order in which they were emitted, so this one settles last. */
  #newest: Promise<unknown> = Promise.resolve();
  /** Is set when the store has failed. A log with a hole is worse than none, so no event is taken after that. */
  #failure: { readonly error: unknown } | null = null;
  readonly #onFatal: (error: unknown) => void;
  readonly #onStored: EventListener;

  /** `onStored` is called with every event of any job that has become durable, and `onFatal` when the store has failed. */
  constructor(
    store: StoreClient,
    { onFatal, onStored }: { onFatal: (error: unknown) => void; onStored: EventListener },
  ) {
    this.#store = store;
    this.#onFatal = onFatal;
    this.#onStored = onStored;
  }

  /**
   * Resolves to the event when it is durable, and to null when it was dropped. Callers that stream need not wait for each event.
   */
  emit(jobId: string, body: JobEventBody, options: EmitOptions = {}): Promise<StoredEvent | null> {
    const emitted = new Promise<StoredEvent | null>((resolve, reject) => {
      if (this.#failure === null) this.#pending.push({ jobId, body, options, resolve, reject });
      else reject(asError(this.#failure.error));
    });
    // A caller that does not wait learns of a failure from `flush`, so the rejection counts as handled.
    emitted.catch(() => undefined);
    this.#newest = emitted;
    if (options.mayWait !== true) this.#hurry();
    if (!this.#writing) {
      this.#writing = true;
      // Events that are emitted without a wait between them form one group, and their caller goes on with its own work first.
      queueMicrotask(() => void this.#write());
    }
    return emitted;
  }

  /** Waits until all events emitted so far are durable. Rejects when they cannot be stored. */
  async flush(): Promise<void> {
    this.#hurry();
    await this.#newest;
  }

  /** Ends the waiting for a full disk: from now on it is a failure like any other. */
  end(): void {
    this.#ending = true;
  }

  /** The number of events that wait for their transaction. */
  get backlog(): number {
    return this.#pending.length;
  }

  /** Calls the listeners with a stored event. Others call this for an event that the store has made by itself. */
  publish(event: StoredEvent): void {
    this.#onStored(event);
    for (const listener of this.#listeners.get(event.jobId) ?? []) listener(event);
  }

  /** Calls `listener` with every event of the job from now on. Returns a function that ends this. */
  listen(jobId: string, listener: EventListener): () => void {
    const listeners = this.#listeners.get(jobId) ?? new Set();
    this.#listeners.set(jobId, listeners.add(listener));
    return () => {
      listeners.delete(listener);
      if (listeners.size === 0 && this.#listeners.get(jobId) === listeners) this.#listeners.delete(jobId);
    };
  }

  async #write(): Promise<void> {
    while (this.#pending.length > 0) {
      await this.#gather();
      const group = this.#pending.splice(0, GROUP_MAX);
      this.#urgent &&= this.#pending.length > 0;
      this.#sentAt = performance.now();
      try {
        const items = group.map(({ jobId, body, options: { key, state } }) => ({
          jobId,
          type: body.type,
          data: body.data,
          key,
          state,
        }));
        const { events } = await this.#store.call('appendEvents', { items });
        for (const [i, event] of events.entries()) {
          if (event !== null) this.publish(event);
          group[i].resolve(event);
        }
      } catch (error) {
        if (error instanceof DiskFull && !this.#ending) {
          // The store has given up its reserve of space. The events stay in order, and are written when there is room.
          this.#pending.unshift(...group);
          await new Promise((resolve) => setTimeout(resolve, RETRY_MS));
          continue;
        }
        this.#failure = { error };
        for (const { reject } of [...group, ...this.#pending.splice(0)]) reject(error);
        this.#onFatal(error);
      }
    }
    this.#writing = false;
  }

  /** Waits for more events, unless the pending ones are to be written at once. */
  async #gather(): Promise<void> {
    const leftMs = this.#sentAt + GATHER_MS - performance.now();
    if (leftMs <= 0 || this.#urgent) return;
    await new Promise<void>((resolve) => {
      const timer = setTimeout(resolve, leftMs);
      this.#endGathering = () => {
        clearTimeout(timer);
        resolve();
      };
    });
  }

  #hurry(): void {
    this.#urgent = true;
    this.#endGathering();
  }
}

const asError = (error: unknown): Error => (error instanceof Error ? error : new Error(String(error)));
