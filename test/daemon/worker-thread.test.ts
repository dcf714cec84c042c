// The order in which one thread gets its requests: what every bit-exact sum of the pipeline rests on.

import { mkdtempSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { expect, onTestFinished, test } from 'vitest';
import { PRIORITY, WorkerThread, type Priority } from '../../src/daemon/worker-thread.ts';

const WORKERS = path.resolve(import.meta.dirname, '../../src/workers');

/** Notes each request; the first one holds the thread until its gate opens, so that the others queue up behind it. */
const RECORDER = `
const names = [];
module.exports = ({ type, name, gate, data }) => {
  if (type === 'hold') Atomics.wait(new Int32Array(gate), 0, 0);
  if (type === 'fail') return { ok: false, error: { code: 'conflict', message: 'Refused.' } };
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
  readonly note: readonly [{ name: string }, Noted];
  readonly take: readonly [{ data: Float32Array }, Noted];
  readonly fail: readonly [object, Noted];
  readonly crash: readonly [object, Noted];
}

function recorder(): WorkerThread<RecorderCalls> {
  const directory = mkdtempSync(path.join(tmpdir(), 'gptd-thread-'));
  writeFileSync(path.join(directory, 'recorder.js'), RECORDER);
  const file = path.relative(WORKERS, path.join(directory, 'recorder')).replaceAll(path.sep, '/');
  const thread = new WorkerThread<RecorderCalls>(file);
  onTestFinished(async () => {
    await thread.close();
    rmSync(directory, { recursive: true });
  });
  return thread;
}

test('requests run the more urgent first, equals in the order in which they were sent', async () => {
  const thread = recorder();
  const gate = new SharedArrayBuffer(4);
  const held = thread.call('hold', { gate });
  const kinds: [string, Priority][] = [
    ['w', PRIORITY.weights],
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

test('one by one without awaiting, requests of one kind keep their order', async () => {
  const thread = recorder();
  const names = Array.from({ length: 200 }, (_, i) => `n${i}`);
  const replies = await Promise.all(names.map((name) => thread.call('note', { name })));
  expect(replies.at(-1)?.names).toEqual(names);
  expect(replies.map((reply) => reply.names.length)).toEqual(names.map((_, i) => i + 1));
});

test('arrays move to the thread', async () => {
  const thread = recorder();
  const data = new Float32Array(5000);
  expect((await thread.call('take', { data })).length).toBe(5000);
  expect(data).toHaveLength(0);
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

test('closing rejects what waits and what comes later, and may be done twice', async () => {
  const thread = recorder();
  const waiting = [thread.call('hold', { gate: new SharedArrayBuffer(4) }), thread.call('note', { name: 'waits' })];
  const settled = Promise.allSettled(waiting);
  await thread.close();
  await thread.close();
  expect((await settled).map(({ status }) => status)).toEqual(['rejected', 'rejected']);
  await expect(thread.call('note', { name: 'late' })).rejects.toMatchObject({ code: 'shutting_down' });
});
