// Streams of events: many readers of one job, readers that stop reading, connections cut in the middle of a byte sequence.
// Every one of them ends with each event once, in order, whatever happened to it.

import type { JobEvent } from '../../src/daemon/protocol.ts';
import { ofType, RawClient, type DataHome } from '../e2e/daemon-fixture.ts';
import { CuttingProxy } from './cutting-proxy.ts';
import { countedHeap, descriptorCount, liveBytes, makeModel, MIB, percentile, waitUntil } from './probe.ts';
import { portOf } from './raw-socket.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';

const TOKENS = 500;
const LONG = { context_length: 640 };

const generation = (seed: number, maxTokens = TOKENS): object => ({
  ...{ model: 'm', prompt: 'Once', temperature: 1, maxTokens },
  seed,
});

/** Every event once, in order, and the tokens from 0 on. */
function checkWhole(events: readonly JobEvent[], tokens = TOKENS): void {
  const gap = events.findIndex(({ seq }, i) => seq !== i + 1);
  check(gap === -1, `event ${gap + 1} has seq ${events[gap]?.seq}`);
  const indexes = ofType(events, 'token').map(({ data }) => data.index);
  check(indexes.length === tokens && indexes.every((index, i) => index === i), `${indexes.length} tokens came`);
  check(events.at(-1)?.type === 'succeeded', `the last event is ${events.at(-1)?.type ?? 'none'}`);
}

async function manyReaders({ tries, tally, home: makeHome }: Context): Promise<Outcome> {
  const home = makeHome();
  await home.start({ workers: 2 });
  await makeModel(home, LONG);
  const submitter = await home.connect();
  const clients = await Promise.all(Array.from({ length: tries }, () => home.connect()));
  const lagsMs: number[] = [];
  const jobId = await submitter.submit('generate', generation(1));
  const read = async (client: RawClient, index: number): Promise<JobEvent[]> => {
    const live = index % 4 !== 3;
    // Most listen from the start; every fourth comes when half of it is stored already.
    if (!live) await clients[0].until(({ type, data }) => type === 'token' && data.index >= TOKENS / 2);
    if (live) client.socket.on('message', () => lagsMs.push(Date.now() - (client.events.at(-1)?.at ?? Date.now())));
    await client.subscribe(jobId);
    await client.untilEnd(jobId);
    return client.events;
  };
  const logs = await Promise.all(clients.map(read));
  for (const events of logs) {
    await tally.try(() => {
      checkWhole(events);
      check(JSON.stringify(events) === JSON.stringify(logs[0]), 'two readers were told different things');
    });
  }
  tally.note(`${TOKENS} tokens each; 99 of 100 events came within ${percentile(lagsMs, 0.99).toFixed(0)} ms`);
  return tally.outcome();
}

/** Twice ten seconds without a byte taken, and the grace of a goodbye. */
const STALLED_MS_MAX = 25_000;
/** Their answers are more than the kernel's own buffers hold, some 4 MB. */
const QUESTIONS = 4000;
/** What is held for one reader that takes nothing, and what is still held when it is gone. */
const READER_MIB_MAX = 4;
const LEFT_MIB_MAX = 1;
const WATCH_MS = 500;

/** Clients that hear the beginning, then ask for everything again and again and take nothing. */
async function stoppedReaders(home: DataHome, jobIds: readonly string[], count: number): Promise<RawClient[]> {
  const readers = await Promise.all(Array.from({ length: count }, () => home.connect()));
  for (const reader of readers) {
    for (const jobId of jobIds) await reader.subscribe(jobId);
    await reader.until(({ seq }) => seq === 100);
    reader.socket.pause();
    for (let i = 0; i < QUESTIONS; i++) {
      for (const jobId of jobIds) reader.socket.send(request('job.subscribe', { jobId, after: 0 }));
      reader.socket.send(request('job.list', {}));
    }
  }
  return readers;
}

async function readerThatStops({ tries, tally, home: makeHome }: Context): Promise<Outcome> {
  const home = makeHome();
  const daemon = await home.start({ workers: 2, env: countedHeap(home) });
  await makeModel(home, LONG);
  const honest = await home.connect();
  const jobIds: string[] = [];
  for (let seed = 1; seed <= 4; seed++) {
    jobIds.push(await honest.submit('generate', generation(seed)));
    await honest.subscribe(jobIds[seed - 1]);
    await honest.untilEnd(jobIds[seed - 1]);
  }
  const expected = sorted(honest.events);
  const open = descriptorCount(daemon.pid);
  const cutOff = (): Promise<void> =>
    waitUntil(() => descriptorCount(daemon.pid) <= open, 'readers that stopped are cut off', STALLED_MS_MAX);
  // The heap takes its working size with the first.
  const [first] = await stoppedReaders(home, jobIds, 1);
  await cutOff();
  first.close();

  const before = await liveBytes(home);
  let peak = before;
  const watching = new AbortController();
  const readers = await stoppedReaders(home, jobIds, tries);
  const startedAt = performance.now();
  const watched = (async () => {
    while (!watching.signal.aborted) {
      peak = Math.max(peak, await liveBytes(home));
      await new Promise((resolve) => setTimeout(resolve, WATCH_MS));
    }
  })();
  // Another stream goes on as ever.
  const jobId = await honest.submit('generate', generation(99));
  await honest.subscribe(jobId);
  await honest.untilEnd(jobId);
  await tally.try(() => checkWhole(honest.events.filter((event) => event.jobId === jobId)));
  await cutOff();
  const slowestMs = performance.now() - startedAt;
  watching.abort();
  await watched;
  const leftMib = ((await liveBytes(home)) - before) / MIB;
  for (const reader of readers) {
    await tally.try(async () => {
      // What its own machine still holds is read before the end of the connection is.
      reader.socket.resume();
      await reader.closed;
      const all = sorted(await continued(home, { jobIds, heard: reader.events }));
      check(
        JSON.stringify(all) === JSON.stringify(expected),
        `${all.length} of ${expected.length} events after the cut`,
      );
    });
  }
  const grownMib = (peak - before) / MIB;
  const allowedMib = READER_MIB_MAX * tries;
  if (grownMib > allowedMib) tally.fault(`${grownMib.toFixed(1)} MiB were held for them, not ${allowedMib} at most`);
  if (leftMib > LEFT_MIB_MAX) tally.fault(`${leftMib.toFixed(1)} MiB are held for readers that are gone`);
  tally.note(
    `all cut off after ${(slowestMs / 1000).toFixed(1)} s; ${grownMib.toFixed(1)} MiB were held for them, ` +
      `${leftMib.toFixed(2)} MiB afterwards`,
  );
  return tally.outcome();
}

/** What was heard before a cut, once each, and what a new connection tells after the last of it. */
async function continued(
  home: DataHome,
  { jobIds, heard }: { readonly jobIds: readonly string[]; readonly heard: readonly JobEvent[] },
): Promise<JobEvent[]> {
  const client = await home.connect();
  const all: JobEvent[] = [];
  for (const jobId of jobIds) {
    const log: JobEvent[] = [];
    // A subscription that begins again begins with the first event.
    for (const event of heard) if (event.jobId === jobId && event.seq === log.length + 1) log.push(event);
    all.push(...log);
    if (log.at(-1)?.type === 'succeeded') continue;
    await client.subscribe(jobId, log.length);
    await client.untilEnd(jobId);
  }
  client.close();
  return [...all, ...client.events];
}

const sorted = (events: readonly JobEvent[]): string[] => events.map((event) => JSON.stringify(event)).sort();

const request = (method: string, params: object): string =>
  JSON.stringify({ jsonrpc: '2.0', id: 'again', method, params });

async function cutConnections({ tries, random, tally, home: makeHome }: Context): Promise<Outcome> {
  const home = makeHome();
  const daemon = await home.start({ workers: 2 });
  await makeModel(home, LONG);
  const proxy = new CuttingProxy(portOf(daemon));
  const url = `http://127.0.0.1:${await proxy.listen()}`;
  const submitter = await home.connect();
  let cuts = 0;
  for (let round = 1; cuts < tries; round++) {
    const jobId = await submitter.submit('generate', generation(round));
    // Twice while the tokens are made and read, then over what is stored.
    for (const live of [true, false]) {
      const { events, cuts: made } = await heardThrough(home, { jobId, url, proxy, most: tries - cuts, random });
      cuts += made;
      try {
        checkWhole(events);
        const whole = await heardThrough(home, { jobId, url: daemon.url, proxy: null, most: 0, random });
        check(JSON.stringify(events) === JSON.stringify(whole.events), 'the pieces differ from the whole');
        tally.passed(made);
      } catch (error) {
        tally.failed(`${live ? 'live' : 'stored'}: ${String(error)}`);
      }
      if (cuts >= tries) break;
    }
  }
  proxy.close();
  return tally.outcome();
}

/** A job's events over as many connections as it takes, each cut at a random byte of what the daemon sends. */
async function heardThrough(
  home: DataHome,
  {
    jobId,
    url,
    proxy,
    most,
    random,
  }: {
    readonly jobId: string;
    readonly url: string;
    readonly proxy: CuttingProxy | null;
    readonly most: number;
    readonly random: Context['random'];
  },
): Promise<{ events: JobEvent[]; cuts: number }> {
  const events: JobEvent[] = [];
  let cuts = 0;
  while (!['succeeded', 'failed', 'cancelled'].includes(events.at(-1)?.type ?? '')) {
    if (proxy !== null) proxy.bytesLeft = cuts < most ? random.integer(1, 12_000) : Infinity;
    const cutsBefore = proxy?.cuts ?? 0;
    try {
      const client = await RawClient.connect({ url, token: home.daemon.token });
      try {
        await client.subscribe(jobId, events.at(-1)?.seq ?? 0);
        await client.untilEnd(jobId);
      } finally {
        events.push(...client.events);
        client.close();
      }
    } catch (error) {
      if (proxy === null) throw error;
    }
    cuts += (proxy?.cuts ?? 0) - cutsBefore;
  }
  return { events, cuts };
}

export const streamRows: readonly Row[] = [
  {
    name: 'R21',
    title: '100 readers of one generation of 500 tokens: each hears each event once, in order',
    tries: 100,
    short: 12,
    run: manyReaders,
  },
  {
    name: 'R22',
    title: 'a reader that stops reading is cut off, bounded in memory, and goes on without a loss',
    tries: 10,
    short: 0,
    run: readerThatStops,
  },
  {
    name: 'R23',
    title: 'connections cut at random bytes go on to the very same events',
    tries: 1000,
    short: 15,
    run: cutConnections,
  },
];
