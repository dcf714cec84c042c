// One accepted WebSocket: requests in, answers and events out, both bounded. A client that asks faster than it reads waits in
// its own socket; one that stops reading is cut off and loses nothing, as events are stored and subscribed to by seq.

import type { Duplex } from 'node:stream';
import type { WebSocket } from 'ws';
import type { EventLog } from '../jobs/event-log.ts';
import type { StoredEvent } from '../../workers/store/messages.ts';
import type { JobEventNotification, MethodName, RpcResponse } from '../protocol/methods.ts';
import type { Handlers } from '../protocol/methods.ts';
import { answer, readFrame, type Question } from './rpc.ts';
import type { StoreClient } from '../threads/store-client.ts';
import { BUFFERED_BYTES_MAX, Subscriptions } from './subscriptions.ts';

/** How many requests of one socket may be under way. */
const PENDING_REQUESTS_MAX = 64;
/** The replies of these methods may be long, and are made one at a time: a socket holds one of them beyond its bound. */
const LONG_REPLIES: ReadonlySet<string> = new Set<MethodName>([
  ...(['job.get', 'job.list', 'model.list', 'model.history', 'checkpoint.list'] as const),
]);
/** A reader that takes nothing for so long while something waits for it is cut off, at the latest after twice the time. */
const STALL_TIMEOUT_MS = 10_000;
/** The close code that tells a reader that was cut off, if it still listens, to try again. */
const CLOSE_TRY_AGAIN = 1013;
const CLOSE_GRACE_MS = 1_000;

type StoredNotification = Omit<JobEventNotification, 'params'> & { readonly params: StoredEvent };

export interface ConnectionParts {
  readonly store: StoreClient;
  readonly events: EventLog;
  /** Methods that are about one socket are answered here. */
  readonly handlers: Omit<Handlers, 'job.subscribe' | 'job.unsubscribe'>;
  readonly onError: (error: unknown) => void;
}

export class Connection {
  readonly #socket: WebSocket;
  readonly #handlers: Handlers;
  readonly #onError: (error: unknown) => void;
  /** Requests that have come and wait for their turn: they are at most what one read of the socket held. */
  readonly #waiting: string[] = [];
  /** The first of them, when it has to wait for a long reply to another one. */
  #first: Question | null = null;
  #pending = 0;
  #isLongPending = false;
  /** Whether the last ping has been answered. */
  #alive = true;

  /** `raw` is the stream below the WebSocket, whose idle timer tells a reader that has stopped from one that is slow. */
  constructor(socket: WebSocket, raw: Duplex & { setTimeout(timeoutMs: number): unknown }, parts: ConnectionParts) {
    const { store, events, handlers, onError } = parts;
    this.#socket = socket;
    this.#onError = onError;
    // An event is passed on as it is stored, for the client to read: nothing is parsed for each token.
    const notify = (params: StoredEvent): void =>
      this.#send(JSON.stringify({ jsonrpc: '2.0', method: 'job.event', params } satisfies StoredNotification));
    const sink = { bufferedBytes: () => socket.bufferedAmount, send: notify };
    // A subscription that cannot go on ends the connection: the client comes back with its last seq.
    const onBroken = (error: unknown): void => {
      onError(error);
      socket.close(1011, 'the event log cannot be read');
    };
    const subscriptions = new Subscriptions({ store, events }, { sink, onError: onBroken });
    this.#handlers = {
      ...handlers,
      'job.subscribe': ({ jobId, after }) => subscriptions.subscribe(jobId, after),
      'job.unsubscribe': ({ jobId }) => {
        subscriptions.unsubscribe(jobId);
        return Promise.resolve({});
      },
    };
    socket.on('pong', () => (this.#alive = true));
    // The connection ends a moment later, so that the close frame that says why is sent first.
    socket.on('error', () => this.#endSoon());
    socket.on('close', () => subscriptions.close());
    socket.on('message', (data, isBinary) => {
      if (isBinary) socket.close(1003, 'text frames only');
      else {
        this.#waiting.push((data as Buffer).toString('utf8'));
        this.#proceed();
      }
    });
    raw.setTimeout(STALL_TIMEOUT_MS);
    raw.on('timeout', () => {
      // An idle connection with nothing to send is watched by pings.
      if (socket.bufferedAmount > 0) this.#cutOff();
    });
  }

  /** Pings, and ends a connection that has not answered the ping before. */
  ping(): void {
    // While the client's frames are left in its socket, so are its pongs.
    if (!this.#alive && !this.#socket.isPaused) {
      this.#socket.terminate();
      return;
    }
    this.#alive = false;
    this.#socket.ping();
  }

  /** Begins requests, in order, while there is room for more answers; while some wait, no more are read. */
  #proceed(): void {
    const socket = this.#socket;
    const hasRoom = (): boolean => this.#pending < PENDING_REQUESTS_MAX && socket.bufferedAmount < BUFFERED_BYTES_MAX;
    while (hasRoom()) {
      const asked = this.#first ?? this.#read();
      this.#first = null;
      if (asked === null) break;
      if (!('method' in asked)) this.#send(JSON.stringify(asked));
      else if (this.#isLongPending && LONG_REPLIES.has(asked.method)) {
        this.#first = asked;
        break;
      } else this.#answer(asked);
    }
    if (this.#waiting.length > 0 || this.#first !== null) socket.pause();
    else if (socket.isPaused && hasRoom()) {
      this.#alive = true;
      socket.resume();
    }
  }

  #read(): Question | RpcResponse | null {
    const text = this.#waiting.shift();
    return text === undefined ? null : readFrame(text);
  }

  #answer(question: Question): void {
    const isLong = LONG_REPLIES.has(question.method);
    this.#pending += 1;
    if (isLong) this.#isLongPending = true;
    void answer(question, this.#handlers)
      .then((response) => {
        if (!question.isNotification) this.#send(JSON.stringify(response));
      })
      .catch(this.#onError)
      .finally(() => {
        this.#pending -= 1;
        if (isLong) this.#isLongPending = false;
        this.#proceed();
      });
  }

  #send(text: string): void {
    if (this.#socket.readyState !== this.#socket.OPEN) return;
    this.#socket.send(text, () => this.#proceed());
  }

  #cutOff(): void {
    this.#socket.close(CLOSE_TRY_AGAIN, 'nothing was read for too long: subscribe again after the last seq');
    this.#endSoon();
  }

  /** Ends a connection that is being closed, if the client does not. */
  #endSoon(): void {
    setTimeout(() => this.#socket.terminate(), CLOSE_GRACE_MS).unref();
  }
}
