// A peer of the CLI that speaks the wire contract in literal frames and does only what a test tells it to do: it drops
// connections, fails jobs and keeps jobs running. The end-to-end tests run the real daemon.

import { createHash } from 'node:crypto';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import type { AddressInfo } from 'node:net';
import { WebSocketServer, type WebSocket } from 'ws';

export interface PeerRequest {
  readonly id: number;
  readonly method: string;
  readonly params: Readonly<Record<string, unknown>>;
}

export interface PeerConnection {
  /** The number of the connection, from 0. */
  readonly index: number;
  reply(request: PeerRequest, result: unknown): void;
  refuse(
    request: PeerRequest,
    error: { readonly code: number; readonly message: string; readonly data?: unknown },
  ): void;
  event(event: Readonly<Record<string, unknown>>): void;
  drop(): void;
}

export interface ScriptedPeer {
  readonly url: string;
  /** Holds every request of every connection, in order. */
  readonly requests: readonly PeerRequest[];
  /** Holds the blobs by digest. */
  readonly blobs: Map<string, Buffer>;
  /** Holds `METHOD path` of every HTTP request. */
  readonly httpRequests: readonly string[];
  close(): Promise<void>;
}

export const PEER_TOKEN = 'a-token-of-the-test';

/** Starts a peer. `answer` gets every JSON-RPC request. */
export async function startPeer(
  answer: (connection: PeerConnection, request: PeerRequest) => void,
): Promise<ScriptedPeer> {
  const requests: PeerRequest[] = [];
  const httpRequests: string[] = [];
  const blobs = new Map<string, Buffer>();
  let connectionCount = 0;

  const serveBlob = async (request: IncomingMessage, response: ServerResponse): Promise<void> => {
    httpRequests.push(`${request.method} ${request.url}`);
    const digest = /^\/v1\/blobs\/sha256:([0-9a-f]{64})$/.exec(request.url ?? '')?.[1] ?? '';
    if (request.headers.authorization !== `Bearer ${PEER_TOKEN}`) {
      response.writeHead(401).end();
    } else if (request.method === 'HEAD') {
      response.writeHead(blobs.has(digest) ? 200 : 404).end();
    } else {
      const chunks: Buffer[] = [];
      for await (const chunk of request as AsyncIterable<Buffer>) chunks.push(chunk);
      const body = Buffer.concat(chunks);
      const isWhole = Number(request.headers['content-length']) === body.length;
      const isTrue = createHash('sha256').update(body).digest('hex') === digest;
      if (isWhole && isTrue) blobs.set(digest, body);
      response.writeHead(isWhole && isTrue ? 201 : 400).end();
    }
  };

  const server = createServer((request, response) => void serveBlob(request, response));
  const sockets = new WebSocketServer({
    server,
    path: '/v1/ws',
    verifyClient: ({ req }, done) => done(req.headers.authorization === `Bearer ${PEER_TOKEN}`, 401),
  });
  sockets.on('connection', (socket: WebSocket) => {
    const send = (message: object): void => socket.send(JSON.stringify({ jsonrpc: '2.0', ...message }));
    const connection: PeerConnection = {
      index: connectionCount++,
      reply: ({ id }, result) => send({ id, result }),
      refuse: ({ id }, error) => send({ id, error }),
      event: (params) => send({ method: 'job.event', params }),
      drop: () => socket.terminate(),
    };
    socket.on('message', (data) => {
      const request = JSON.parse((data as Buffer).toString('utf8')) as PeerRequest;
      requests.push(request);
      answer(connection, request);
    });
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return {
    url: `http://127.0.0.1:${(server.address() as AddressInfo).port}`,
    requests,
    blobs,
    httpRequests,
    close: async () => {
      for (const socket of sockets.clients) socket.terminate();
      sockets.close();
      server.closeAllConnections();
      await new Promise((resolve) => server.close(resolve));
    },
  };
}
