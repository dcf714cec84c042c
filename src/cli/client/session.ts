// A conversation with the daemon that outlives its connections. When a connection breaks, the session opens another one for the
// next request or event, with back-off. Job events go on after the last one seen, so a restart of the daemon repeats and misses
// nothing.

import { isTerminal, type JobEvent } from '../../daemon/protocol/jobs.ts';
import type { MethodInputs, MethodName, MethodResults } from '../../daemon/protocol/methods.ts';
import type { Address } from './address.ts';
import type { Client, EventListener } from './client.ts';
import { ClientFault, ConnectionLost, RpcFault } from './faults.ts';

/** How long a lost daemon is looked for. */
const RECONNECT_MS_MAX = 30_000;
const BACKOFF_MS_MIN = 100;
const BACKOFF_MS_MAX = 2_000;
/** After a connection that lived this long, the next search for the daemon has its whole time again. */
const GOOD_CONNECTION_MS = 5_000;

export interface SessionOptions {
  /** Finds the daemon and connects to it. It is called again for every connection. */
  readonly connect: () => Promise<Client>;
  /** Is told in one sentence when the connection is lost and when it is back. */
  readonly notify?: (sentence: string) => void;
}

/** Opens a session with a single attempt to connect: the call rejects when no daemon answers now. */
export async function openSession(options: SessionOptions): Promise<Session> {
  return new Session(await options.connect(), options);
}

export class Session {
  readonly #options: SessionOptions;
  #client: Client;
  #reconnecting: Promise<Client> | undefined;
  #closed = false;
  #searchDeadlineMs = 0;
  #backoffMs = BACKOFF_MS_MIN;

  constructor(client: Client, options: SessionOptions) {
    this.#client = client;
    this.#options = options;
  }

  /** The address at which the daemon was last reached. */
  get address(): Address {
    return this.#client.address;
  }

  /**
   * Sends the request again on a new connection when the first one broke. This is safe, because every request is a read, has the
   * same effect when repeated, or carries a key. Only `model.delete` is not sent again: the second reply would be that there is
   * no such model.
   */
  async request<M extends MethodName>(method: M, params: MethodInputs[M]): Promise<MethodResults[M]> {
    for (;;) {
      const client = await this.#live();
      try {
        return await client.request(method, params);
      } catch (error) {
        if (!(error instanceof ConnectionLost) || method === 'model.delete' || this.#closed) throw error;
      }
    }
  }

  /** Yields the job's events from `after` + 1 on, each exactly once and in order. The event that ends the job is the last one. */
  async *events(jobId: string, { after = 0 }: { readonly after?: number } = {}): AsyncGenerator<JobEvent, void> {
    let lastSeq = after;
    for (;;) {
      const client = await this.#live();
      const inbox = new Inbox();
      client.listen(jobId, inbox);
      try {
        await client.request('job.subscribe', { jobId, after: lastSeq });
        for await (const event of inbox) {
          if (event.seq <= lastSeq) continue;
          if (event.seq !== lastSeq + 1) {
            throw new ClientFault('failed', `The daemon sent event ${event.seq} of job ${jobId} after ${lastSeq}.`);
          }
          lastSeq = event.seq;
          yield event;
          if (isTerminal(event.type)) return;
        }
      } catch (error) {
        // A daemon that is stopping refuses requests with `shutting_down`. The next daemon takes up the job.
        const stopping = error instanceof RpcFault && error.reason === 'shutting_down';
        if ((!(error instanceof ConnectionLost) && !stopping) || this.#closed) throw error;
        client.close();
      } finally {
        client.unlisten(jobId);
      }
    }
  }

  /** May be called twice. Pending requests and events reject with `ConnectionLost`. */
  close(): void {
    this.#closed = true;
    this.#client.close();
  }

  async #live(): Promise<Client> {
    if (this.#client.isOpen) return this.#client;
    if (this.#closed) throw new ConnectionLost('The session is closed.');
    this.#reconnecting ??= this.#reconnect().finally(() => {
      this.#reconnecting = undefined;
    });
    return this.#reconnecting;
  }

  async #reconnect(): Promise<Client> {
    this.#options.notify?.('The connection to the daemon was lost: looking for it again.');
    if (performance.now() - this.#client.connectedAtMs > GOOD_CONNECTION_MS || this.#searchDeadlineMs === 0) {
      this.#searchDeadlineMs = performance.now() + RECONNECT_MS_MAX;
      this.#backoffMs = BACKOFF_MS_MIN;
    }
    for (;;) {
      await delay(this.#backoffMs);
      this.#backoffMs = Math.min(this.#backoffMs * 2, BACKOFF_MS_MAX);
      if (this.#closed) throw new ConnectionLost('The session is closed.');
      if (performance.now() > this.#searchDeadlineMs) {
        const sentence = `The daemon went away and did not come back within ${RECONNECT_MS_MAX / 1000} s`;
        throw new ClientFault('no_daemon', `${sentence}: start one with "gptd start".`);
      }
      try {
        this.#client = await this.#options.connect();
        this.#options.notify?.(`Connected again to ${this.#client.address.url}.`);
        return this.#client;
      } catch (error) {
        if (!(error instanceof ClientFault) || error.problem !== 'no_daemon') throw error;
      }
    }
  }
}

const delay = (ms: number): Promise<void> =>
  new Promise((resolve) => {
    setTimeout(resolve, ms);
  });

/** Holds the events that came and were not read yet. After a lost connection it yields these events, then throws the cause. */
class Inbox implements EventListener, AsyncIterable<JobEvent> {
  readonly #events: JobEvent[] = [];
  #cause: ConnectionLost | undefined;
  #wake: (() => void) | undefined;

  event(event: JobEvent): void {
    this.#events.push(event);
    this.#wake?.();
  }

  lost(cause: ConnectionLost): void {
    this.#cause = cause;
    this.#wake?.();
  }

  async *[Symbol.asyncIterator](): AsyncGenerator<JobEvent, never> {
    for (;;) {
      for (const event of this.#events.splice(0)) yield event;
      if (this.#events.length > 0) continue;
      if (this.#cause !== undefined) throw this.#cause;
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }
}
