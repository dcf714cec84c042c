// One client's view of the event logs: for each job a cursor that moves over contiguous seqs. Events come from the store until
// the cursor has caught up, then live; the cursor of a socket that does not drain stops, and reads from the store again when it does.

import type { StoredEvent } from '../../workers/store/messages.ts';
import type { EventLog } from '../jobs/event-log.ts';
import { isTerminal } from '../protocol/jobs.ts';
import type { StoreClient } from '../threads/store-client.ts';

/** So many bytes may wait in a socket before its cursors stop; the kernel holds megabytes more. */
export const BUFFERED_BYTES_MAX = 64 << 10;
const DRAIN_POLL_MS = 10;
/** How many events are read from the store at once. */
const PAGE = 64;

export interface EventSink {
  /** How many bytes the socket has been given and has not sent yet. */
  bufferedBytes(): number;
  send(event: StoredEvent): void;
}

interface Cursor {
  /** The last seq that was sent. */
  last: number;
  live: boolean;
  closed: boolean;
  readonly unlisten: () => void;
}

export class Subscriptions {
  readonly #store: StoreClient;
  readonly #events: EventLog;
  readonly #sink: EventSink;
  readonly #onError: (error: unknown) => void;
  readonly #cursors = new Map<string, Cursor>();
  /** Resolves when the newest page is sent. Each page waits for the one before: a socket holds one beyond its bound at the most. */
  #pages: Promise<unknown> = Promise.resolve();
  #closed = false;

  constructor(
    { store, events }: { store: StoreClient; events: EventLog },
    { sink, onError }: { sink: EventSink; onError: (error: unknown) => void },
  ) {
    this.#store = store;
    this.#events = events;
    this.#sink = sink;
    this.#onError = onError;
  }

  /** Begins after seq `after`, and replaces a subscription to the same job. The events come after the reply. Throws `not_found`. */
  async subscribe(jobId: string, after: number): Promise<{ lastSeq: number }> {
    const { lastSeq, state } = await this.#store.call('getJob', { jobId });
    // The socket may have closed meanwhile.
    if (this.#closed) return { lastSeq };
    this.unsubscribe(jobId);
    if (isTerminal(state) && after >= lastSeq) return { lastSeq };
    const cursor: Cursor = {
      last: after,
      live: false,
      closed: false,
      unlisten: this.#events.listen(jobId, (event) => this.#hear(cursor, event)),
    };
    this.#cursors.set(jobId, cursor);
    setImmediate(() => void this.#catchUp(jobId, cursor).catch(this.#onError));
    return { lastSeq };
  }

  unsubscribe(jobId: string): void {
    const cursor = this.#cursors.get(jobId);
    if (cursor === undefined) return;
    cursor.closed = true;
    cursor.unlisten();
    this.#cursors.delete(jobId);
  }

  close(): void {
    this.#closed = true;
    for (const jobId of [...this.#cursors.keys()]) this.unsubscribe(jobId);
  }

  #hear(cursor: Cursor, event: StoredEvent): void {
    if (!cursor.live || cursor.closed || event.seq <= cursor.last) return;
    if (event.seq === cursor.last + 1 && this.#sink.bufferedBytes() < BUFFERED_BYTES_MAX) {
      // The event log calls this: what goes wrong with one client's event is not its fault.
      try {
        this.#send(cursor, event);
      } catch (error) {
        this.#onError(error);
      }
      return;
    }
    cursor.live = false;
    void this.#catchUp(event.jobId, cursor).catch(this.#onError);
  }

  async #catchUp(jobId: string, cursor: Cursor): Promise<void> {
    while (!cursor.closed && !cursor.live) {
      const page = this.#pages.then(() => this.#sendPage(jobId, cursor));
      this.#pages = page.catch(() => undefined);
      await page;
    }
  }

  /** Waits for room, then sends what is stored; the cursor is live when that was all. */
  async #sendPage(jobId: string, cursor: Cursor): Promise<void> {
    while (!cursor.closed && this.#sink.bufferedBytes() >= BUFFERED_BYTES_MAX) {
      await new Promise((resolve) => setTimeout(resolve, DRAIN_POLL_MS));
    }
    if (cursor.closed) return;
    const { events, lastSeq } = await this.#store.call('readEvents', { jobId, after: cursor.last, limit: PAGE });
    for (const event of events) this.#send(cursor, event);
    // An event that was stored meanwhile comes live; when others lie between, the cursor reads on.
    cursor.live = cursor.last >= lastSeq;
  }

  #send(cursor: Cursor, event: StoredEvent): void {
    if (cursor.closed) return;
    cursor.last = event.seq;
    this.#sink.send(event);
    // Nothing follows the event that ends a job.
    if (isTerminal(event.type)) this.unsubscribe(event.jobId);
  }
}
