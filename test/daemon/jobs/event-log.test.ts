// Checks how events are grouped into transactions. A real store runs on the calling thread, and the test notes its transactions.
// Time stands still unless the test moves it.

import { afterEach, beforeEach, expect, test, vi } from 'vitest';
import { EventLog } from '../../../src/daemon/jobs/event-log.ts';
import type { StoreClient } from '../../../src/daemon/threads/store-client.ts';
import { openedStore } from '../../workers/store/fixture.ts';

let events: EventLog;
/** Holds the keys of each transaction's events. */
let groups: (readonly (string | undefined)[])[];
const heard: number[] = [];

beforeEach(() => {
  const { store } = openedStore();
  store.submitJob({ jobId: 'job', kind: 'generate', spec: {}, priority: 0, key: 'k', queueLimit: 10 });
  groups = [];
  heard.length = 0;
  const client = {
    call: (type: 'appendEvents', input: Parameters<typeof store.appendEvents>[0]) => {
      groups.push(input.items.map(({ key }) => key));
      return Promise.resolve(store[type](input));
    },
  } as unknown as StoreClient;
  events = new EventLog(client, {
    onFatal: (error) => expect.unreachable(String(error)),
    onStored: ({ seq }) => heard.push(seq),
  });
  vi.useFakeTimers({ now: 1_000_000 });
});
afterEach(() => {
  vi.useRealTimers();
});

const say = (key: string, { mayWait }: { mayWait: boolean }): Promise<unknown> =>
  events.emit('job', { type: 'log', data: { message: key } }, { key, mayWait });

/** Lets everything happen that does not wait for time to pass. */
const settle = (): Promise<unknown> => vi.advanceTimersByTimeAsync(0);

test('events that may wait share a transaction, 30 ms after the last transaction', async () => {
  for (const key of ['a', 'b', 'c', 'd']) {
    void say(key, { mayWait: true });
    await vi.advanceTimersByTimeAsync(7);
  }
  expect(groups).toEqual([['a']]);
  await vi.advanceTimersByTimeAsync(3);
  expect(groups).toEqual([['a'], ['b', 'c', 'd']]);
  expect(heard).toEqual([2, 3, 4, 5]);
  await vi.advanceTimersByTimeAsync(30);
  void say('e', { mayWait: true });
  await settle();
  expect(groups.at(-1)).toEqual(['e']);
});

test('an event that may not wait takes along what waits before it', async () => {
  await say('a', { mayWait: true });
  void say('b', { mayWait: true });
  await settle();
  expect(groups).toEqual([['a']]);
  void say('c', { mayWait: false });
  await settle();
  expect(groups).toEqual([['a'], ['b', 'c']]);
  expect(heard).toEqual([2, 3, 4]);
  void say('d', { mayWait: true });
  await settle();
  expect(groups).toHaveLength(2);
});

test('a flush writes the events that wait, and does not wait for later ones', async () => {
  await say('a', { mayWait: true });
  void say('b', { mayWait: true });
  await settle();
  await events.flush();
  expect(groups).toEqual([['a'], ['b']]);
  void say('c', { mayWait: true });
  await settle();
  expect(groups).toHaveLength(2);
});
