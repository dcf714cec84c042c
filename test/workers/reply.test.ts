// Checks the messages between threads: which arrays and ports a contract must name, which of them are transferred, and what a
// structured clone leaves of an error.

import { MessageChannel, type MessagePort } from 'node:worker_threads';
import Database from 'better-sqlite3';
import { transferableSymbol } from 'piscina';
import { expect, it } from 'vitest';
import { replying, transferList, type Moves, type ThreadContract } from '../../src/workers/reply.ts';
import { PREPARER_THREAD } from '../../src/workers/data/messages.ts';
import { STORE_THREAD } from '../../src/workers/store/messages.ts';
import { STAGE_THREAD } from '../../src/workers/stage-messages.ts';

interface EchoCalls {
  readonly echo: readonly [{ readonly array: Float32Array }, { readonly array: Float32Array }];
  readonly count: readonly [{ readonly shared: Float32Array<SharedArrayBuffer> }, { readonly count: number }];
}

const ECHO: ThreadContract<EchoCalls> = {
  file: 'echo',
  requests: { echo: ({ array }) => [array] },
  replies: { echo: ({ array }) => [array] },
};

it('a bug keeps its message and its stack between threads, even when it is no native error', async () => {
  const db = new Database(':memory:');
  const failing = replying<EchoCalls, never>(() => db.prepare('SELECT * FROM absent') as never, ECHO);
  const thrown: unknown = await failing({ type: 'count', shared: new Float32Array(new SharedArrayBuffer(4)) }).catch(
    (error: unknown) => error,
  );
  const arrived = structuredClone(thrown) as Error;
  expect(arrived.message).toBe('SqliteError: no such table: absent');
  expect(arrived.stack).toContain('reply.test');
  db.close();
});

it('a contract that forgets an array or a port in a request or a reply does not compile', () => {
  const nothing = {};
  const shared: Moves<Pick<EchoCalls, 'count'>, 0> = nothing;
  // @ts-expect-error The request of `echo` holds an array.
  const request: Moves<EchoCalls, 0> = nothing;
  // @ts-expect-error The chunks of a reply hold arrays.
  const chunks: Moves<{ next: [object, { chunks?: readonly { bytes: Uint8Array | null }[] }] }, 1> = nothing;
  // @ts-expect-error The list holds ports.
  const ports: Moves<{ open: [{ ports: readonly (MessagePort | null)[] }, object] }, 0> = nothing;
  // @ts-expect-error The buffer moves by itself.
  const buffer: Moves<{ take: [{ buffer: ArrayBuffer }, object] }, 0> = nothing;
  // @ts-expect-error The values of the map are arrays.
  const map: Moves<{ take: [{ byName: ReadonlyMap<string, Float32Array> }, object] }, 0> = nothing;
  // @ts-expect-error There is no such call.
  const unknown: Moves<EchoCalls, 0> = { ...ECHO.requests, absent: () => [] };
  const names = Object.keys(unknown);
  expect([shared, request, chunks, ports, buffer, map, names]).toEqual([{}, {}, {}, {}, {}, {}, ['echo', 'absent']]);
});

it('a reply transfers the arrays that its contract names, and a reply without arrays transfers none', async () => {
  const echo = replying<EchoCalls, { array: Float32Array } | { count: number }>(
    (request) => (request.type === 'echo' ? { array: request.array } : { count: request.shared.length }),
    ECHO,
  );
  const array = new Float32Array(3);
  const reply = await echo({ type: 'echo', array });
  expect((reply as { [transferableSymbol]?: unknown })[transferableSymbol]).toEqual([array.buffer]);
  const counted = await echo({ type: 'count', shared: new Float32Array(new SharedArrayBuffer(8)) });
  expect(counted).toEqual({ ok: true, value: { count: 2 } });
});

it('each buffer and port is transferred once, but shared memory and the common pool of small Buffers are not', () => {
  const { port1, port2 } = new MessageChannel();
  const bytes = new Uint8Array(8);
  const pooled = Buffer.from('small');
  expect(pooled.buffer.byteLength).toBe(Buffer.poolSize);
  const shared = new Int32Array(new SharedArrayBuffer(4));
  expect(transferList([bytes, null, port1, bytes.subarray(4), pooled, shared])).toEqual([bytes.buffer, port1]);
  expect(transferList()).toEqual([]);
  port1.close();
  port2.close();
});

it('the threads transfer the arrays and ports of their messages', () => {
  const [a, b, c] = [1, 2, 3].map((length) => new Float32Array(length));
  const [lease, micro] = ['lease', { index: 0, step: 1, firstSequence: 0, starts: [0] }];
  const { requests, replies } = STAGE_THREAD;
  expect(requests.trainForward({ lease, micro, x: a })).toEqual([a]);
  expect(requests.serveStep({ lease, input: a, shares: [] })).toEqual([a]);
  expect(requests.serveStep({ lease, input: [1, 2], shares: [] })).toEqual([]);
  expect(replies.trainForward({ y: a })).toEqual([a]);
  expect(replies.trainForward({ losses: a, dx: b })).toEqual([a, b]);
  expect(replies.trainEvaluate({ y: null, losses: c })).toEqual([null, c]);
  const bytes = new Uint8Array(4);
  const chunks = [{ tensor: 'wte.weight', part: 'w' as const, offsetBytes: 0, bytes }];
  expect(STORE_THREAD.requests.putChunks({ checkpointId: 1, chunks })).toEqual([bytes]);
  expect(STORE_THREAD.replies.readBlobChunk({ bytes: null })).toEqual([null]);
  expect(PREPARER_THREAD.replies.sourceNext({ chunks, done: false })).toEqual([bytes]);
  expect(PREPARER_THREAD.replies.exportNext({ pieces: [{ file: 'f', bytes }], done: true, totalBytes: 4 })).toEqual([
    bytes,
  ]);
});
