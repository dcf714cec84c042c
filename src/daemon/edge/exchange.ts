// One HTTP request and its response, as the server hands them to whoever answers.

import type { IncomingMessage, ServerResponse } from 'node:http';

export interface Exchange {
  readonly request: IncomingMessage;
  readonly response: ServerResponse;
  /** Aborted when the daemon stops. */
  readonly stopping: AbortSignal;
}

export interface AskedFor {
  readonly method: string | undefined;
  /** The target without its query. */
  readonly pathname: string;
}

/** Answers, or says that others may. Throws what is to be answered as an error, as long as nothing has been sent. */
export type HttpRoutes = (asked: AskedFor, exchange: Exchange) => Promise<'answered' | 'not mine'>;

export function replyJson(response: ServerResponse, status: number, body: unknown): void {
  // A body that nobody reads, and that may never end, ends with its connection.
  if (!response.req.complete && hasBody(response.req)) response.setHeader('connection', 'close');
  response.writeHead(status, { 'content-type': 'application/json' }).end(`${JSON.stringify(body)}\n`);
}

const hasBody = ({ headers }: IncomingMessage): boolean =>
  headers['transfer-encoding'] !== undefined || Number(headers['content-length'] ?? 0) > 0;
