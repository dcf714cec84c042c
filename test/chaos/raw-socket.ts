// Sends bytes over a TCP connection that no well-behaved client sends: handshakes and frames are written by hand.

import { randomBytes } from 'node:crypto';
import net from 'node:net';
import type { Daemon } from '../e2e/daemon-fixture.ts';

export const portOf = ({ url }: Pick<Daemon, 'url'>): number => Number(new URL(url).port);

/** Returns the request that upgrades a connection to a WebSocket, with the daemon's token unless `headers` replace it. */
export function upgradeRequest({ url, token }: Daemon, headers: Readonly<Record<string, string>> = {}): string {
  const all = {
    Host: new URL(url).host,
    Upgrade: 'websocket',
    Connection: 'Upgrade',
    'Sec-WebSocket-Key': randomBytes(16).toString('base64'),
    'Sec-WebSocket-Version': '13',
    'Sec-WebSocket-Protocol': 'gptd.v1',
    Authorization: `Bearer ${token}`,
    ...headers,
  };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`);
  return `GET /v1/ws HTTP/1.1\r\n${lines.join('')}\r\n`;
}

export interface FrameShape {
  readonly fin?: boolean;
  /** The three reserved bits, which only extensions may use. */
  readonly rsv?: number;
  readonly masked?: boolean;
  /** The length that the frame declares instead of its payload's. */
  readonly declaredBytes?: bigint;
}

/** Returns one frame of a client, which is well-formed unless the shape says otherwise. */
export function frame(opcode: number, payload: Buffer, shape: FrameShape = {}): Buffer {
  const { fin = true, rsv = 0, masked = true, declaredBytes = BigInt(payload.length) } = shape;
  const mask = masked ? 0x80 : 0;
  const head = [(fin ? 0x80 : 0) | (rsv << 4) | opcode];
  let length: Buffer;
  if (declaredBytes < 126n) length = Buffer.from([mask | Number(declaredBytes)]);
  else if (declaredBytes < 65536n) {
    length = Buffer.alloc(3, mask | 126);
    length.writeUInt16BE(Number(declaredBytes), 1);
  } else {
    length = Buffer.alloc(9, mask | 127);
    length.writeBigUInt64BE(declaredBytes, 1);
  }
  if (!masked) return Buffer.concat([Buffer.from(head), length, payload]);
  const key = randomBytes(4);
  const covered = Buffer.from(payload.map((byte, i) => byte ^ key[i % 4]));
  return Buffer.concat([Buffer.from(head), length, key, covered]);
}

export interface Exchange {
  /** What the daemon said before it closed. Little is kept beyond 64 KiB. */
  readonly reply: string;
  readonly closedAfterMs: number;
}

const REPLY_BYTES_MAX = 1 << 16;

/**
 * Writes `bytes` and waits until the daemon closes. Rejects when it has not closed within `timeoutMs`. `halfClose` ends the client's
 * side after the bytes, so that the daemon knows that nothing more comes.
 */
export function exchange(
  port: number,
  bytes: Buffer,
  { timeoutMs, halfClose = false }: { readonly timeoutMs: number; readonly halfClose?: boolean },
): Promise<Exchange> {
  return new Promise((resolve, reject) => {
    const startedAt = performance.now();
    let reply = '';
    const socket = net.connect({ port, host: '127.0.0.1', allowHalfOpen: true });
    const timer = setTimeout(() => {
      socket.destroy();
      reject(
        new Error(`the daemon has not closed the connection after ${timeoutMs} ms; it said ${reply.slice(0, 200)}`),
      );
    }, timeoutMs);
    const done = (): void => {
      clearTimeout(timer);
      socket.destroy();
      resolve({ reply, closedAfterMs: performance.now() - startedAt });
    };
    socket.on('data', (data) => {
      if (reply.length < REPLY_BYTES_MAX) reply += data.toString('latin1');
    });
    // A reset and an orderly end are both a closed connection; a refused connection is a dead daemon.
    socket.on('error', (error: NodeJS.ErrnoException) => {
      if (error.code !== 'ECONNREFUSED') {
        done();
        return;
      }
      clearTimeout(timer);
      reject(error);
    });
    socket.on('end', done);
    socket.on('close', done);
    if (halfClose) socket.end(bytes);
    else socket.write(bytes);
  });
}
