// An HTTP connection is answered one request at a time. Node begins each request that a client sends ahead as it comes, and would
// hold a reply to every one of them. Here they wait, and no more of them are read.

import type { IncomingMessage, ServerResponse } from 'node:http';
import type { Socket } from 'node:net';

interface Line {
  busy: boolean;
  /** Requests that were sent ahead: they are at most what one read of the socket held. */
  readonly waiting: (() => void)[];
}

export class HttpTurns {
  readonly #lines = new WeakMap<Socket, Line>();

  /** Resolves when all earlier requests of the same connection have been answered, and the client has read the answers. */
  async take({ socket }: IncomingMessage, response: ServerResponse): Promise<void> {
    const line = this.#lines.get(socket) ?? { busy: false, waiting: [] };
    this.#lines.set(socket, line);
    if (line.busy) {
      socket.pause();
      await new Promise<void>((resolve) => line.waiting.push(resolve));
    }
    line.busy = true;
    response.once('close', () => {
      const next = line.waiting.shift();
      line.busy = next !== undefined;
      if (next === undefined) return;
      if (line.waiting.length === 0) socket.resume();
      next();
    });
  }
}
