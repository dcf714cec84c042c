// The daemon's one port: HTTP routes and the WebSocket. It checks who asks, bounds what they may send, and hands frames to the
// RPC; it knows nothing of jobs. Lifecycle: created, listening, closed.

import http, { type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Duplex } from 'node:stream';
import { WebSocketServer, type WebSocket } from 'ws';
import { GptdError } from '../../model/errors.ts';
import { crossOrigin, refuseSource, refuseToken, type AccessRules, type Refusal } from './access.ts';
import { receiveBlob, sendBlob } from './blobs.ts';
import { Connection, type ConnectionParts } from './connection.ts';
import { errorBody, HTTP_STATUS } from './http-errors.ts';
import { HttpTurns } from './http-turns.ts';
import { replyJson, type HttpRoutes } from './exchange.ts';
import { LIMITS } from '../protocol/fields.ts';
import { SUBPROTOCOL, VERSION, WEBSOCKET_PATH } from '../protocol/daemon.ts';

/** Bounds of a connection; all documented in README. */
const HEADERS_TIMEOUT_MS = 5_000;
/** How often Node looks for connections that are past the bound above. */
const TIMEOUT_CHECK_MS = 1_000;
const HEADER_BYTES_MAX = 16 << 10;
const CONNECTIONS_MAX = 1024;
/** A connection on which nothing moves for so long is closed. */
const SILENCE_TIMEOUT_MS = 120_000;
const PING_INTERVAL_MS = 20_000;

/** An object of its own, as the type of the options does not know `closeTimeout` yet. */
const WEBSOCKET_OPTIONS = {
  noServer: true,
  maxPayload: LIMITS.messageBytesMax,
  maxFragments: 256,
  maxBufferedChunks: 4096,
  perMessageDeflate: false,
  /** Milliseconds that a client may take to answer a close. */
  closeTimeout: 5_000,
  handleProtocols: (offered: Set<string>): string | false => (offered.has(SUBPROTOCOL) ? SUBPROTOCOL : false),
};

export interface ServerParts extends ConnectionParts {
  /** What OpenAI's clients ask for. */
  readonly openai: HttpRoutes;
  readonly metrics: { readonly contentType: string; render(): Promise<string> };
  readonly logger: { warn(fields: object, message: string): void };
}

export class Server {
  readonly #parts: ServerParts;
  readonly #http: http.Server;
  readonly #sockets = new WebSocketServer(WEBSOCKET_OPTIONS);
  readonly #connections = new Map<WebSocket, Connection>();
  readonly #turns = new HttpTurns();
  readonly #heartbeat: NodeJS.Timeout;
  readonly #stopping = new AbortController();
  #rules: AccessRules;
  #ready = false;

  constructor(parts: ServerParts, rules: Omit<AccessRules, 'port'>) {
    this.#parts = parts;
    this.#rules = { ...rules, port: 0 };
    this.#http = http.createServer({
      headersTimeout: HEADERS_TIMEOUT_MS,
      connectionsCheckingInterval: TIMEOUT_CHECK_MS,
      maxHeaderSize: HEADER_BYTES_MAX,
    });
    this.#http.maxConnections = CONNECTIONS_MAX;
    // Uploads of many gigabytes take as long as they take; silent ones are dropped.
    this.#http.requestTimeout = 0;
    this.#http.setTimeout(SILENCE_TIMEOUT_MS);
    this.#http.on('request', (request, response) => void this.#serve(request, response));
    this.#http.on('upgrade', (request, socket, head) => this.#upgrade(request, socket, head));
    this.#heartbeat = setInterval(() => this.#ping(), PING_INTERVAL_MS).unref();
  }

  /** Resolves to the port when it listens. Rejects with the system's error, such as EADDRINUSE. */
  async listen(host: string, port: number): Promise<number> {
    await new Promise<void>((resolve, reject) => {
      this.#http.once('error', reject);
      this.#http.listen(port, host, () => {
        this.#http.off('error', reject);
        this.#http.on('error', this.#parts.onError);
        resolve();
      });
    });
    this.#rules = { ...this.#rules, port: (this.#http.address() as AddressInfo).port };
    return this.#rules.port;
  }

  /** /readyz says yes from now on. */
  ready(): void {
    this.#ready = true;
  }

  get socketCount(): number {
    return this.#sockets.clients.size;
  }

  async close(): Promise<void> {
    this.#ready = false;
    clearInterval(this.#heartbeat);
    this.#stopping.abort();
    for (const socket of this.#sockets.clients) socket.close(1001, 'the daemon stops');
    const closed = new Promise<void>((resolve) => this.#http.close(() => resolve()));
    this.#http.closeIdleConnections();
    setTimeout(() => {
      for (const socket of this.#sockets.clients) socket.terminate();
      this.#http.closeAllConnections();
    }, 500).unref();
    await closed;
  }

  async #serve(request: IncomingMessage, response: ServerResponse): Promise<void> {
    await this.#turns.take(request, response);
    if (request.socket.destroyed) return;
    response.setHeader('x-content-type-options', 'nosniff');
    const pathname = pathOf(request);
    const isHealth = pathname === '/healthz';
    // A question of the browser carries no token, and gets no more than the answer.
    const { headers, isPreflight } = crossOrigin(request, this.#rules);
    response.setHeaders(new Map(Object.entries(headers)));
    const refusal =
      refuseSource(request, this.#rules) ?? (isHealth || isPreflight ? null : refuseToken(request, this.#rules));
    if (refusal !== null) {
      this.#refused(request, refusal);
      // Whatever else a stranger sends is not read: Node ends the connection with the reply.
      response.setHeader('connection', 'close');
      replyJson(response, refusal.status, errorBody(new GptdError('unauthorized', refusal.message)));
      return;
    }
    if (isPreflight) {
      response.writeHead(204).end();
      return;
    }
    try {
      await this.#route(pathname, request, response);
    } catch (error) {
      const body = errorBody(error);
      if (!(error instanceof GptdError)) this.#parts.onError(error);
      if (response.headersSent) response.destroy();
      else replyJson(response, HTTP_STATUS[body.error.code], body);
    }
  }

  async #route(pathname: string, request: IncomingMessage, response: ServerResponse): Promise<void> {
    const { method } = request;
    const reading = method === 'GET' || method === 'HEAD';
    const exchange = { request, response, stopping: this.#stopping.signal };
    const blob = /^\/v1\/blobs\/sha256:([0-9a-f]{64})$/.exec(pathname)?.[1];
    if (blob !== undefined && reading) await sendBlob(this.#parts.store, blob, { request, response });
    else if (blob !== undefined && method === 'PUT') await receiveBlob(this.#parts.store, blob, { request, response });
    else if (pathname === '/healthz' && reading) replyJson(response, 200, { status: 'ok', version: VERSION });
    else if (pathname === '/readyz' && reading) {
      replyJson(response, this.#ready ? 200 : 503, { status: this.#ready ? 'ready' : 'not ready' });
    } else if (pathname === '/metrics' && reading) {
      const { metrics } = this.#parts;
      response.writeHead(200, { 'content-type': metrics.contentType }).end(await metrics.render());
    } else if ((await this.#parts.openai({ method, pathname }, exchange)) === 'not mine') {
      throw new GptdError('not_found', `There is nothing at ${method ?? 'GET'} ${pathname}.`);
    }
  }

  /** For who watches the door. The path has no query, and a token that a client has put elsewhere is left out. */
  #refused(request: IncomingMessage, { status, message }: Refusal): void {
    const { remoteAddress } = request.socket;
    const withoutToken = (text: string): string => text.replaceAll(this.#rules.token, '[token]');
    this.#parts.logger.warn(
      { status, remoteAddress, path: withoutToken(pathOf(request)).slice(0, 200) },
      `refused: ${withoutToken(message).slice(0, 300)}`,
    );
  }

  #upgrade(request: IncomingMessage, socket: Duplex, head: Buffer): void {
    socket.on('error', () => socket.destroy());
    const pathname = pathOf(request);
    const refusal = refuseSource(request, this.#rules) ?? refuseToken(request, this.#rules);
    if (refusal !== null) {
      this.#refused(request, refusal);
      refuseUpgrade(socket, refusal.status, refusal.message);
    } else if (pathname !== WEBSOCKET_PATH) refuseUpgrade(socket, 404, `The WebSocket is at ${WEBSOCKET_PATH}.`);
    else {
      this.#sockets.handleUpgrade(request, socket, head, (accepted) => {
        this.#connections.set(accepted, new Connection(accepted, request.socket, this.#parts));
        accepted.once('close', () => this.#connections.delete(accepted));
      });
    }
  }

  #ping(): void {
    for (const connection of this.#connections.values()) connection.ping();
  }
}

/** The target without its query. It is compared and never parsed: a target need not be a URL. */
const pathOf = (request: IncomingMessage): string => (request.url ?? '/').split('?', 1)[0];

function refuseUpgrade(socket: Duplex, status: number, message: string): void {
  const body = `${JSON.stringify({ error: { code: status === 404 ? 'not_found' : 'unauthorized', message } })}\n`;
  // The client need not close its side for the connection to be over.
  socket.once('finish', () => socket.destroy());
  socket.end(
    `HTTP/1.1 ${status} ${http.STATUS_CODES[status] ?? ''}\r\nConnection: close\r\nContent-Type: application/json\r\n` +
      `Content-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`,
  );
}
