// One WebSocket connection to the daemon that speaks JSON-RPC 2.0. Requests wait in a map under their ids. When the socket dies,
// every pending request rejects with the cause, and every listener is told the cause. Connecting is in connect.ts, and connecting
// again is in session.ts.

import { LIMITS } from '../../daemon/protocol/fields.ts';
import type { JobEvent } from '../../daemon/protocol/jobs.ts';
import type {
  JobEventNotification,
  MethodInputs,
  MethodName,
  MethodResults,
  RpcResponse,
} from '../../daemon/protocol/methods.ts';
import type { Address } from './address.ts';
import { ClientFault, ConnectionLost, RpcFault } from './faults.ts';

const utf8 = new TextEncoder();

/**
 * The part of a WebSocket that the client needs, with the names of the browser's WebSocket. `terminate` closes without waiting
 * for the other side.
 */
export interface Socket {
  send(text: string): void;
  terminate(): void;
  addEventListener(type: 'message', listener: (event: { readonly data: unknown }) => void): void;
  addEventListener(
    type: 'error',
    listener: (event: { readonly message: string; readonly error: unknown }) => void,
  ): void;
  addEventListener(type: 'close', listener: (event: { readonly code: number; readonly reason: string }) => void): void;
}

/** Receives the events of one job until the connection is lost. */
export interface EventListener {
  event(event: JobEvent): void;
  lost(cause: ConnectionLost): void;
}

interface Pending {
  resolve(result: unknown): void;
  reject(cause: Error): void;
}

export class Client {
  readonly address: Address;
  readonly connectedAtMs = performance.now();
  readonly #socket: Socket;
  readonly #pending = new Map<number, Pending>();
  readonly #listeners = new Map<string, EventListener>();
  #lost: ConnectionLost | undefined;
  #nextId = 1;

  /** `socket` must be open. The client owns it from now on. */
  constructor(socket: Socket, address: Address) {
    this.#socket = socket;
    this.address = address;
    socket.addEventListener('error', ({ message, error }) => this.#lose(message, error));
    socket.addEventListener('close', ({ code, reason }) => this.#lose(reason === '' ? `close code ${code}` : reason));
    socket.addEventListener('message', ({ data }) => this.#receive(String(data)));
  }

  get isOpen(): boolean {
    return this.#lost === undefined;
  }

  /** Rejects with `RpcFault` when the daemon replies with an error, and with `ConnectionLost` when no reply can come. */
  async request<M extends MethodName>(method: M, params: MethodInputs[M]): Promise<MethodResults[M]> {
    if (this.#lost !== undefined) throw this.#lost;
    const id = this.#nextId++;
    const frame = JSON.stringify({ jsonrpc: '2.0', id, method, params });
    const frameBytes = utf8.encode(frame).length;
    if (frameBytes > LIMITS.messageBytesMax) {
      throw new ClientFault(
        'too_long',
        `The request is ${frameBytes} bytes long: it must be at most ${LIMITS.messageBytesMax}.`,
      );
    }
    return new Promise<MethodResults[M]>((resolve, reject) => {
      this.#pending.set(id, { resolve: (result) => resolve(result as MethodResults[M]), reject });
      this.#socket.send(frame);
    });
  }

  /** Sets the only listener of a job. Call it before subscribing, so that no event comes too early. */
  listen(jobId: string, listener: EventListener): void {
    if (this.#lost === undefined) this.#listeners.set(jobId, listener);
    else listener.lost(this.#lost);
  }

  unlisten(jobId: string): void {
    this.#listeners.delete(jobId);
  }

  close(): void {
    this.#lose('closed by this side');
    this.#socket.terminate();
  }

  #receive(text: string): void {
    let message: RpcResponse | JobEventNotification;
    try {
      message = JSON.parse(text) as RpcResponse | JobEventNotification;
    } catch (cause) {
      this.#lose('the daemon sent a frame that is no JSON', cause);
      this.#socket.terminate();
      return;
    }
    if ('method' in message) {
      this.#listeners.get(message.params.jobId)?.event(message.params);
      return;
    }
    const pending = this.#pending.get(Number(message.id));
    if (pending === undefined) return;
    this.#pending.delete(Number(message.id));
    if ('error' in message) {
      const { code, data, message: sentence } = message.error;
      pending.reject(new RpcFault(sentence, { code, reason: data?.code }));
    } else {
      pending.resolve(message.result);
    }
  }

  /** May be called more than once. The first cause counts. */
  #lose(reason: string, cause?: unknown): void {
    if (this.#lost !== undefined) return;
    const lost = new ConnectionLost(`The connection to ${this.address.url} was lost: ${reason}.`, { cause });
    this.#lost = lost;
    for (const pending of this.#pending.values()) pending.reject(lost);
    for (const listener of this.#listeners.values()) listener.lost(lost);
    this.#pending.clear();
    this.#listeners.clear();
  }
}
