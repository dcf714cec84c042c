// Checks the order in which a thread gets its requests. Every bit-exact sum of the pipeline depends on that order.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { describe, expect, onTestFinished, test } from 'vitest';
import { PRIORITY, WorkerDied, WorkerThread, type Priority } from '../../../src/daemon/threads/worker-thread.ts';
import type { ThreadContract } from '../../../src/workers/reply.ts';

const SRC = path.resolve(import.meta.dirname, '../../../src');

/** Notes each request. The first request holds the thread until a gate opens, so that the others queue up behind it. */
const RECORDER = `
const { nativeRuns } = require('node:worker_threads').workerData;
const names = [];
module.exports = ({ type, name, gate, data }) => {
  // This acts as a native run until the gate opens.
  if (type === 'run') {
    Atomics.add(nativeRuns, 0, 2);
    Atomics.store(new Int32Array(gate), 1, 1);
    Atomics.wait(new Int32Array(gate), 0, 0);
    Atomics.sub(nativeRuns, 0, 2);
    for (;;);
  }
  if (type === 'hold') Atomics.wait(new Int32Array(gate), 0, 0);
  if (type === 'fail') return { ok: false, error: { code: 'conflict', message: 'Refused.' } };
  if (type === 'die') process.exit(7);
  if (type === 'crash') throw new TypeError('a bug');
  if (name !== undefined) names.push(name);
  return { ok: true, value: { names: [...names], length: data?.length ?? 0 } };
};
`;

interface Noted {
  readonly names: string[];
  readonly length: number;
}

interface RecorderCalls {
  readonly hold: readonly [{ gate: SharedArrayBuffer }, Noted];
  readonly run: readonly [{ gate: SharedArrayBuffer }, Noted];
  readonly note: readonly [{ name: string }, Noted];
  readonly take: readonly [{ data: Float32Array }, Noted];
  readonly lend: readonly [{ data: Float32Array<SharedArrayBuffer> }, Noted];
  readonly fail: readonly [object, Noted];
  readonly crash: readonly [object, Noted];
  readonly die: readonly [object, Noted];
}

const recorderContract = (file: string): ThreadContract<RecorderCalls> => ({
  file,
  requests: { take: ({ data }) => [data] },
  replies: {},
});

function recorder(): WorkerThread<RecorderCalls> {
  const directory = mkdtempSync(path.join(tmpdir(), 'gptd-thread-'));
  writeFileSync(path.join(directory, 'recorder.js'), RECORDER);
  const file = path.relative(SRC, path.join(directory, 'recorder')).replaceAll(path.sep, '/');
  const thread = new WorkerThread(recorderContract(file));
  onTestFinished(async () => {
    await thread.close();
    rmSync(directory, { recursive: true });
  });
  return thread;
}

test('more urgent requests run first, and equally urgent ones in the order in which they were sent', async () => {
  const thread = recorder();
  const gate = new SharedArrayBuffer(4);
  const held = thread.call('hold', { gate });
  const kinds: [string, Priority][] = [
    ['w', PRIORITY.weightGradients],
    ['f', PRIORITY.forward],
    ['b', PRIORITY.backward],
    ['i', PRIORITY.interactive],
  ];
  const rounds = Array.from({ length: 20 }, (_, i) => i);
  const sent = rounds.flatMap((i) =>
    kinds.map(([kind, priority]) => thread.call('note', { name: `${kind}${i}` }, { priority })),
  );
  Atomics.store(new Int32Array(gate), 0, 1);
  Atomics.notify(new Int32Array(gate), 0);
  await held;
  const replies = await Promise.all(sent);
  const order = replies.map(({ names }) => names).sort((a, b) => b.length - a.length)[0];
  expect(order).toEqual(['i', 'b', 'f', 'w'].flatMap((kind) => rounds.map((i) => `${kind}${i}`)));
});

test('requests of one kind that are sent without waiting keep their order', async () => {
  const thread = recorder();
  const names = Array.from({ length: 200 }, (_, i) => `n${i}`);
  const replies = await Promise.all(names.map((name) => thread.call('note', { name })));
  expect(replies.at(-1)?.names).toEqual(names);
  expect(replies.map((reply) => reply.names.length)).toEqual(names.map((_, i) => i + 1));
});

test('an abort drops requests that wait, and leaves the running one and the requests of others alone', async () => {
  const thread = recorder();
  const gate = new SharedArrayBuffer(4);
  const stop = new AbortController();
  const { signal } = stop;
  const held = thread.call('hold', { gate }, { signal });
  const dropped = ['a', 'b'].map((name) => thread.call('note', { name }, { signal, priority: PRIORITY.backward }));
  const kept = thread.call('note', { name: 'kept' });
  stop.abort(new Error('no longer wanted'));
  for (const request of [...dropped, thread.call('note', { name: 'late' }, { signal })]) {
    await expect(request).rejects.toBe(signal.reason);
  }
  Atomics.store(new Int32Array(gate), 0, 1);
  Atomics.notify(new Int32Array(gate), 0);
  expect(await held).toMatchObject({ names: [] });
  expect((await kept).names).toEqual(['kept']);
});

test('arrays move to the thread', async () => {
  const thread = recorder();
  const data = new Float32Array(5000);
  expect((await thread.call('take', { data })).length).toBe(5000);
  expect(data).toHaveLength(0);
});

test('shared arrays stay where they are', async () => {
  const thread = recorder();
  const data = new Float32Array(new SharedArrayBuffer(20));
  expect((await thread.call('lend', { data })).length).toBe(5);
  expect((await thread.call('take', { data })).length).toBe(5);
  expect(data).toHaveLength(5);
});

test('a refusal keeps its code, a bug its kind, and the thread lives on', async () => {
  const thread = recorder();
  await expect(thread.call('fail', {})).rejects.toMatchObject({
    name: 'GptdError',
    code: 'conflict',
    message: 'Refused.',
  });
  await expect(thread.call('crash', {})).rejects.toThrow('a bug');
  expect((await thread.call('note', { name: 'still here' })).names).toEqual(['still here']);
});

test('closing rejects requests that wait or come later, and may be done twice', async () => {
  const thread = recorder();
  const waiting = [thread.call('hold', { gate: new SharedArrayBuffer(4) }), thread.call('note', { name: 'waits' })];
  const settled = Promise.allSettled(waiting);
  await thread.close();
  await thread.close();
  expect((await settled).map(({ status }) => status)).toEqual(['rejected', 'rejected']);
  await expect(thread.call('note', { name: 'late' })).rejects.toMatchObject({ code: 'shutting_down' });
});

test('a thread in a native run is ended when the run ends, and not before', async () => {
  const thread = recorder();
  const gate = new Int32Array(new SharedArrayBuffer(8));
  const running = thread.call('run', { gate: gate.buffer });
  const rejected = expect(running).rejects.toThrow();
  while (Atomics.load(gate, 1) === 0) await new Promise((resolve) => setImmediate(resolve));
  const order: string[] = [];
  const closed = thread.close().then(() => order.push('closed'));
  await rejected;
  // Meanwhile another thread starts, works and closes.
  const witness = recorder();
  await witness.call('note', { name: 'idle' });
  await witness.close();
  order.push('run ends');
  Atomics.store(gate, 0, 1);
  Atomics.notify(gate, 0);
  await closed;
  expect(order).toEqual(['run ends', 'closed']);
});

describe('a thread that dies', () => {
  test('rejects the running request and those that waited, says why, and is replaced', async () => {
    const thread = recorder();
    const causes: unknown[] = [];
    const heard = new Promise<void>((resolve) =>
      thread.onDeath((cause) => {
        causes.push(cause);
        resolve();
      }),
    );
    await thread.call('note', { name: 'before' });
    const bound = thread.bound();
    const sent = [
      thread.call('die', {}),
      thread.call('note', { name: 'waits' }),
      bound.call('note', { name: 'bound' }),
    ];
    for (const result of await Promise.allSettled(sent)) {
      expect(result).toMatchObject({ status: 'rejected', reason: { name: 'WorkerDied', code: 'engine_failed' } });
    }
    await heard;
    expect(String(causes)).toContain('exited with code');
    // What the thread held is gone. A caller bound to that thread is told so, and every other caller gets a new thread.
    await expect(bound.call('note', { name: 'late' })).rejects.toBeInstanceOf(WorkerDied);
    expect((await thread.call('note', { name: 'new' })).names).toEqual(['new']);
    expect((await thread.bound().call('note', { name: 'newer' })).names).toEqual(['new', 'newer']);
    expect(causes).toHaveLength(1);
  });

  test('while it starts is replaced too, as often as it takes', async () => {
    const directory = mkdtempSync(path.join(tmpdir(), 'gptd-thread-'));
    // This thread dies while it starts, the first two times.
    const script = `
const { appendFileSync, readFileSync } = require('node:fs');
const log = ${JSON.stringify(path.join(directory, 'starts'))};
appendFileSync(log, 'x');
if (readFileSync(log).length <= 2) process.exit(1);
module.exports = () => ({ ok: true, value: { names: [], length: 0 } });`;
    writeFileSync(path.join(directory, 'frail.js'), script);
    const file = path.relative(SRC, path.join(directory, 'frail')).replaceAll(path.sep, '/');
    const thread = new WorkerThread(recorderContract(file));
    onTestFinished(async () => {
      await thread.close();
      rmSync(directory, { recursive: true });
    });
    let deaths = 0;
    for (; ; deaths++) {
      const reply = await thread.call('note', { name: 'hello' }).catch((error: unknown) => error);
      if (!(reply instanceof WorkerDied)) {
        expect(reply).toEqual({ names: [], length: 0 });
        break;
      }
    }
    expect(deaths).toBeGreaterThan(0);
    expect(deaths).toBeLessThanOrEqual(2);
  });
});
