// One WebSocket connection to the daemon that speaks JSON-RPC 2.0. Requests wait in a map under their ids; when the socket
// dies every one of them rejects with the cause, and so does every listener. Connecting again is session.ts's matter.

import { WebSocket } from 'ws';
import { LIMITS } from '../../daemon/protocol/fields.ts';
import { SUBPROTOCOL, WEBSOCKET_PATH } from '../../daemon/protocol/daemon.ts';
import type { JobEvent } from '../../daemon/protocol/jobs.ts';
import type {
  JobEventNotification,
  MethodInputs,
  MethodName,
  MethodResults,
  RpcResponse,
} from '../../daemon/protocol/methods.ts';
import { noDaemonAt, refusal, type Address } from './address.ts';
import { RpcFault, usageError } from '../exit-codes.ts';

const HANDSHAKE_TIMEOUT_MS = 10_000;

/** The socket closed while something was waiting for it. */
export class ConnectionLost extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'ConnectionLost';
  }
}

/** Gets the events of one job, until the connection is lost. */
export interface EventListener {
  event(event: JobEvent): void;
  lost(cause: ConnectionLost): void;
}

interface Pending {
  resolve(result: unknown): void;
  reject(cause: Error): void;
}

/** Resolves once the daemon has accepted the connection. Throws exit 69 when none answers, exit 1 when it refuses. */
export async function connect(address: Address): Promise<Client> {
  const socket = new WebSocket(`${address.url.replace(/^http/, 'ws')}${WEBSOCKET_PATH}`, SUBPROTOCOL, {
    headers: address.token === undefined ? {} : { authorization: `Bearer ${address.token}` },
    perMessageDeflate: false,
    handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
  });
  await new Promise<void>((resolve, reject) => {
    socket.once('open', resolve);
    socket.once('unexpected-response', (request, response) => {
      request.destroy();
      reject(refusal(address, response.statusCode ?? 0));
    });
    // The handshake was answered by nobody, or by something that is no gptd. The listener stays: an `error` event that
    // nobody hears would end the process, and `close` follows each of them.
    socket.on('error', (cause) => reject(noDaemonAt(address.url, cause)));
  });
  return new Client(socket, address);
}

export class Client {
  readonly address: Address;
  readonly connectedAtMs = performance.now();
  readonly #socket: WebSocket;
  readonly #pending = new Map<number, Pending>();
  readonly #listeners = new Map<string, EventListener>();
  #lost: ConnectionLost | undefined;
  #nextId = 1;

  /** `socket` is open and becomes the client's own. */
  constructor(socket: WebSocket, address: Address) {
    this.#socket = socket;
    this.address = address;
    socket.on('error', (cause) => this.#lose(cause.message, cause));
    socket.on('close', (code, reason) => this.#lose(reason.length > 0 ? reason.toString() : `close code ${code}`));
    socket.on('message', (data) => this.#receive((data as Buffer).toString('utf8')));
  }

  get isOpen(): boolean {
    return this.#lost === undefined;
  }

  /** Rejects with `RpcFault` when the daemon answers with an error, with `ConnectionLost` when it cannot answer. */
  async request<M extends MethodName>(method: M, params: MethodInputs[M]): Promise<MethodResults[M]> {
    if (this.#lost !== undefined) throw this.#lost;
    const id = this.#nextId++;
    const frame = JSON.stringify({ jsonrpc: '2.0', id, method, params });
    const frameBytes = Buffer.byteLength(frame);
    if (frameBytes > LIMITS.messageBytesMax) {
      throw usageError(`The request is ${frameBytes} bytes long: it must be at most ${LIMITS.messageBytesMax}.`);
    }
    return new Promise<MethodResults[M]>((resolve, reject) => {
      this.#pending.set(id, { resolve: (result) => resolve(result as MethodResults[M]), reject });
      this.#socket.send(frame);
    });
  }

  /** One listener per job; set it before subscribing, so that no event comes too early. */
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

  /** May be called more than once: the first cause counts. */
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
