// Sends what no client should send: frames that break RFC 6455, messages that break JSON-RPC, and requests that break HTTP. Attacks are
// drawn from a seed. Each kind says what the daemon has to do.

import { performance } from 'node:perf_hooks';
import type { Daemon, RawClient } from '../e2e/daemon-fixture.ts';
import { exchange, frame, portOf, upgradeRequest } from './raw-socket.ts';
import type { Random } from './random.ts';
import { check } from './row.ts';

const CLOSE_MS_MAX = 10_000;
const TEXT = 1;
const CLOSE = 8;
const PING = 9;

const noise = (random: Random, most: number): Buffer => random.bytes(random.integer(0, most));

/** The frames after which the daemon has to close the connection by itself, whatever else comes. */
const FATAL_FRAMES: readonly ((random: Random) => Buffer)[] = [
  (random) => frame(TEXT, noise(random, 40), { rsv: random.integer(1, 7) }),
  (random) => frame(random.pick([3, 4, 5, 6, 7, 11, 12, 13, 14, 15]), noise(random, 40)),
  (random) => frame(random.pick([TEXT, CLOSE, PING]), noise(random, 40), { masked: false }),
  (random) => frame(TEXT, noise(random, 40), { declaredBytes: (1n << 63n) - 1n - BigInt(random.integer(0, 1000)) }),
  (random) => frame(TEXT, noise(random, 40), { declaredBytes: BigInt((1 << 20) + random.integer(1, 1 << 20)) }),
  (random) => frame(TEXT, Buffer.concat([Buffer.from('{"a":"'), Buffer.from([0xc3, random.pick([0x28, 0x7f])])])),
  (random) => frame(PING, random.bytes(random.integer(126, 1000))),
  (random) => frame(PING, noise(random, 20), { fin: false }),
  (random) => frame(0, noise(random, 20)),
  (random) =>
    Buffer.concat([frame(TEXT, noise(random, 0), { fin: false }), frame(TEXT, Buffer.from('{}'), { fin: true })]),
  () => frame(CLOSE, Buffer.from([3])),
  (random) => {
    const code = Buffer.alloc(2);
    code.writeUInt16BE(random.pick([0, 999, 1004, 1005, 1006, 1015, 2999, 5000, 65535]));
    return frame(CLOSE, code);
  },
  (random) => frame(2, noise(random, 100)),
  () => Buffer.concat([frame(TEXT, Buffer.alloc(0), { fin: false }), ...emptyFragments(400)]),
];

const emptyFragments = (count: number): Buffer[] =>
  Array.from({ length: count }, () => frame(0, Buffer.alloc(0), { fin: false }));

/** Sends one malformed frame on a connection of its own. */
export async function malformedFrame(daemon: Daemon, random: Random): Promise<void> {
  const garbage = random.once(8);
  const attack = garbage ? random.bytes(random.integer(1, 300)) : random.pick(FATAL_FRAMES)(random);
  const bytes = Buffer.concat([Buffer.from(upgradeRequest(daemon)), attack]);
  // Garbage may begin a frame that never ends. So the client leaves, and the daemon has to notice.
  await exchange(portOf(daemon), bytes, { timeoutMs: CLOSE_MS_MAX, halfClose: garbage });
}

const HTTP_ATTACKS: readonly ((random: Random, host: string) => string | Buffer)[] = [
  (random) => random.bytes(random.integer(1, 400)),
  (_, host) => `BREW /healthz HTTP/1.1\r\nHost: ${host}\r\n\r\n`,
  (_, host) => `GET /v1/models HTTP/9.9\r\nHost: ${host}\r\n\r\n`,
  (_, host) => `GET /v1/models HTTP/1.1\r\nHost: ${host}\r\nno colon here\r\n\r\n`,
  (random, host) => `GET / HTTP/1.1\r\nHost: ${host}\r\nX: ${'y'.repeat(random.integer(16_500, 40_000))}\r\n\r\n`,
  (random, host) => `GET / HTTP/1.1\r\nHost: ${host}\r\n${'a: b\r\n'.repeat(random.integer(2500, 6000))}\r\n`,
  (_, host) => `GET /\0 HTTP/1.1\r\nHost: ${host}\r\n\r\n`,
  (random, host) =>
    `PUT /v1/blobs/x HTTP/1.1\r\nHost: ${host}\r\nContent-Length: ${random.pick(['-1', '1e9', '0x10', '9'.repeat(30)])}\r\n\r\n`,
  (_, host) =>
    `PUT /v1/blobs/x HTTP/1.1\r\nHost: ${host}\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`,
  (_, host) => `PUT /v1/blobs/x HTTP/1.1\r\nHost: ${host}\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n`,
  (_, host) => `GET /v1/models HTTP/1.1\r\nHost: ${host}\r\nHost: evil.test\r\n\r\n`,
  () => 'GET /v1/models HTTP/1.1\r\n\r\n',
  (_, host) => `GET http://${host}/v1/models HTTP/1.1\r\nHost: ${host}\r\n\r\n`,
  (_, host) => `GET //[ HTTP/1.1\r\nHost: ${host}\r\n\r\n`,
  (_, host) => `OPTIONS * HTTP/1.1\r\nHost: ${host}\r\n\r\n`,
  (_, host) => `CONNECT ${host} HTTP/1.1\r\nHost: ${host}\r\n\r\n`,
  (_, host) => `GET /v1/ws HTTP/1.1\r\nHost: ${host}\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n`,
];

/** Sends one malformed request. The daemon refuses it or hangs up, and never accepts it. */
export async function malformedRequest(daemon: Daemon, random: Random): Promise<void> {
  const bytes = Buffer.from(random.pick(HTTP_ATTACKS)(random, new URL(daemon.url).host) as string, 'latin1');
  const { reply } = await exchange(portOf(daemon), bytes, { timeoutMs: CLOSE_MS_MAX, halfClose: true });
  check(!/^HTTP\/1\.1 [123]/.test(reply), `${JSON.stringify(bytes.toString('latin1').slice(0, 100))} got ${reply}`);
}

const MESSAGES: readonly object[] = [
  { jsonrpc: '2.0', id: 'a1', method: 'daemon.status', params: {} },
  { jsonrpc: '2.0', id: 'a2', method: 'job.get', params: { jobId: 'nobody' } },
  { jsonrpc: '2.0', id: 'a3', method: 'job.list', params: { all: true, limit: 3 } },
  { jsonrpc: '2.0', id: 'a4', method: 'job.subscribe', params: { jobId: 'nobody', after: 0 } },
  { jsonrpc: '2.0', id: 'a5', method: 'model.get', params: { model: 'nobody@best' } },
  {
    jsonrpc: '2.0',
    id: 'a6',
    method: 'job.submit',
    params: { kind: 'generate', spec: { model: 'nobody', prompt: 'x' } },
  },
  { jsonrpc: '2.0', id: 'a7', method: 'job.submit', params: { kind: 'train', spec: { model: 'nobody', data: [] } } },
];

/** Makes a message in which one thing is changed. */
export function mutatedMessage(random: Random): string {
  const text = JSON.stringify(random.pick(MESSAGES));
  const at = random.integer(0, text.length - 1);
  switch (random.integer(0, 7)) {
    case 0:
      return text.slice(0, at);
    case 1:
      return (
        text.slice(0, at) + random.pick(['{', '}', '[', ']', '"', '\\', '\u0000', ',', '-', '1e999']) + text.slice(at)
      );
    case 2:
      return text.slice(0, at) + text.slice(at + random.integer(1, 8));
    case 3:
      return '['.repeat(random.integer(1, 50_000));
    case 4:
      return text.replace(/"id":"a\d"/, `"id":${random.pick(['{}', '[]', '1e400', 'true', '"x"', '-0', '1.5'])}`);
    case 5:
      return text.replace('"params":', `"__proto__":{"admin":true},"${random.pick(['toString', '__proto__', 'x'])}":`);
    case 6:
      return text.replace(/"(nobody|generate|train)[^"]*"/, () => JSON.stringify(hostileText(random)));
    default:
      return JSON.stringify(random.pick([null, 0, [], 'x', true, [JSON.parse(text)], { jsonrpc: '2.0' }]));
  }
}

const hostileText = (random: Random): string =>
  random.pick([
    '../../etc/passwd',
    'a'.repeat(random.integer(100, 5000)),
    '\u0000',
    '__proto__',
    'constructor',
    '%2e%2e%2f',
    '\ud800',
    "'; DROP TABLE jobs; --",
    random.bytes(20).toString('latin1'),
  ]);

/** Sends messages and then a good request, which has to be answered: no message may have closed the connection. */
export async function malformedMessages(client: RawClient, messages: readonly string[]): Promise<void> {
  const startedAt = performance.now();
  for (const message of messages) client.socket.send(message);
  const timer = setTimeout(() => client.close(), CLOSE_MS_MAX);
  const { uptimeMs } = await client.request<{ uptimeMs: number }>('daemon.status');
  clearTimeout(timer);
  check(uptimeMs > 0, `daemon.status answers ${uptimeMs} after ${performance.now() - startedAt} ms`);
}
