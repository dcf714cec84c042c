// Readers that stop reading are cut off after a while. Until then the memory for them is bounded and other readers are not disturbed,
// and over a new connection they lose no event. With ten that only listen resident memory is measured; with ten that ask on and on,
// the memory that is held.

import { readFileSync } from 'node:fs';
import type { JobEvent } from '../../src/daemon/protocol/jobs.ts';
import type { Daemon, DataHome, RawClient } from '../e2e/daemon-fixture.ts';
import { HELD, MemoryGrowth, RESIDENT } from './memory-growth.ts';
import { countedHeap, descriptorCount, makeModel, percentile, waitUntil } from './probe.ts';
import { portOf } from './raw-socket.ts';
import { check, type Context, type Outcome, type Row, type Tally } from './row.ts';
import { checkWhole, generation, LONG } from './streams.ts';

/** A reader is cut off after two times ten seconds without a byte taken, and some grace for the close. */
const STALLED_MS_MAX = 25_000;
const READERS = 10;
/** The events of so many jobs are more than the kernel's own buffers hold, which are some 4 MB for each connection. */
const JOBS = 8;
const LOGPROBS = 20;

const WARM_ROUNDS = 3;
/** Resident memory may grow by so much for all readers that take nothing. */
const GROWTH_MIB_MAX = 16;
/** The kernel's buffers are full when they have not changed for so long. */
const STILL_MS = 300;
/** The number of generations of which the best counts for the lag of those who read, as the machine has other work. */
const LAG_ROUNDS = 5;
/** The lag may grow by this factor, or up to a few milliseconds, which the clock hardly shows. */
const LAG_FACTOR_MAX = 1.2;
const LAG_MS_MIN = 5;

/** The number of times that a reader asks for the same again. */
const QUESTIONS = 2000;
/** The most that is held for one such reader, and the most that is still held when all are gone. */
const ASKER_MIB_MAX = 1;
const LEFT_MIB_MAX = 1;
const LEFT_TRIES_MAX = 20;
const LEFT_POLL_MS = 500;

/** Some stored generations, the events that an honest client heard of them, and the descriptors that are open while it is alone. */
interface Scene {
  readonly home: DataHome;
  readonly honest: RawClient;
  readonly jobIds: readonly string[];
  readonly expected: readonly string[];
  readonly open: number;
}

async function scene(home: DataHome, env: Readonly<Record<string, string>> = {}): Promise<Scene> {
  const { pid } = await home.start({ workers: 2, env });
  await makeModel(home, LONG);
  const honest = await home.connect();
  const jobIds: string[] = [];
  for (let seed = 1; seed <= JOBS; seed++) {
    jobIds.push(await honest.submit('generate', { ...generation(seed), logprobs: LOGPROBS }));
    await honest.subscribe(jobIds[seed - 1]);
    await honest.untilEnd(jobIds[seed - 1]);
  }
  return { home, honest, jobIds, expected: sorted(honest.events), open: descriptorCount(pid) };
}

const connected = (home: DataHome, count: number): Promise<RawClient[]> =>
  Promise.all(Array.from({ length: count }, () => home.connect()));

/** Resolves when no descriptors are open but those of the scene and of `others`. */
const cutOff = ({ home, open }: Scene, others = 0): Promise<void> =>
  waitUntil(
    () => descriptorCount(home.daemon.pid) <= open + others,
    'readers that stopped are cut off',
    STALLED_MS_MAX,
  );

/** Resolves when the daemon has filled the kernel's buffers of its connections, and waits for their readers. */
async function stalled({ url, pid }: Daemon): Promise<void> {
  const port = `:${portOf({ url }).toString(16).toUpperCase().padStart(4, '0')}`;
  let last = -1;
  let since = 0;
  await waitUntil(() => {
    const lines = readFileSync(`/proc/${pid}/net/tcp`, 'utf8').trim().split('\n');
    const fields = lines.map((line) => line.trim().split(/\s+/)).filter(([, local]) => local.endsWith(port));
    const queued = fields.reduce((sum, [, , , , queues]) => sum + parseInt(queues.split(':')[0], 16), 0);
    if (queued !== last) since = performance.now();
    last = queued;
    return queued > 0 && performance.now() - since > STILL_MS;
  }, 'what the kernel holds is full');
}

/** Hears the beginning of a job, then sends `questions` and reads nothing more. */
async function stopReading(reader: RawClient, jobId: string, questions: readonly string[]): Promise<void> {
  await reader.subscribe(jobId);
  await reader.until(({ seq }) => seq === 100);
  reader.socket.pause();
  for (const question of questions) reader.socket.send(question);
}

const question = (method: string, params: object): string =>
  JSON.stringify({ jsonrpc: '2.0', id: 'again', method, params });

/** Checks that each reader that stopped hears the rest over a new connection, and misses nothing. */
async function checkNoLoss(
  tally: Tally,
  { home, jobIds, expected }: Scene,
  readers: readonly RawClient[],
): Promise<void> {
  for (const reader of readers) {
    await tally.try(async () => {
      // The reader's own kernel still holds events, which are read before the connection's end.
      reader.socket.resume();
      await reader.closed;
      const all = sorted(await continued(home, { jobIds, heard: reader.events }));
      check(
        JSON.stringify(all) === JSON.stringify(expected),
        `${all.length} of ${expected.length} events after the cut`,
      );
    });
  }
}

/** Resolves to the events that were heard before a cut, once each, and to those that a new connection tells after the last of them. */
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

/** Each reader hears every job from its first event on. */
async function hearAll(readers: readonly RawClient[], jobIds: readonly string[]): Promise<void> {
  const hear = async (reader: RawClient): Promise<void> => {
    for (const jobId of jobIds) {
      await reader.subscribe(jobId);
      await reader.untilEnd(jobId);
      reader.events.length = 0;
    }
  };
  await Promise.all(readers.map(hear));
}

/** Resolves to the milliseconds within which 99 of 100 events of a generation reach its readers, in the best of some generations. */
async function lagMs(submitter: RawClient, readers: readonly RawClient[]): Promise<number> {
  const rounds: number[] = [];
  for (let round = 0; round < LAG_ROUNDS; round++) {
    const lags: number[] = [];
    const jobId = await submitter.submit('generate', generation(100 + round));
    const read = async (reader: RawClient): Promise<void> => {
      const onMessage = (): void => void lags.push(Date.now() - (reader.events.at(-1)?.at ?? Date.now()));
      reader.socket.on('message', onMessage);
      await reader.subscribe(jobId);
      await reader.untilEnd(jobId);
      reader.socket.off('message', onMessage);
      checkWhole(reader.events);
      reader.events.length = 0;
    };
    await Promise.all(readers.map(read));
    rounds.push(percentile(lags, 0.99));
  }
  return Math.min(...rounds);
}

async function readersThatStop({ tries, tally, home: makeHome }: Context): Promise<Outcome> {
  const home = makeHome();
  const stage = await scene(home);
  const { honest, jobIds } = stage;
  const fast = await connected(home, READERS);
  // As many readers that read everything bring the daemon to its working size.
  const warming = await connected(home, tries);
  for (let round = 0; round < WARM_ROUNDS; round++) await hearAll([...fast, ...warming], jobIds);
  const usualLagMs = await lagMs(honest, fast);
  for (const reader of warming) reader.close();
  const resident = await MemoryGrowth.since(home, RESIDENT);
  const questions = jobIds.map((jobId) => question('job.subscribe', { jobId, after: 0 }));
  const slow: RawClient[] = [];
  let [disturbedLagMs, slowestMs] = [Infinity, Infinity];
  const peakMib = await resident.peakMib(async () => {
    slow.push(...(await connected(home, tries)));
    await Promise.all(slow.map((reader) => stopReading(reader, jobIds[0], questions)));
    const startedAt = performance.now();
    await stalled(home.daemon);
    disturbedLagMs = await lagMs(honest, fast);
    await cutOff(stage, fast.length);
    slowestMs = performance.now() - startedAt;
  });
  await checkNoLoss(tally, stage, slow);
  const grown = resident.judge(tally, peakMib, GROWTH_MIB_MAX);
  if (disturbedLagMs > Math.max(usualLagMs * LAG_FACTOR_MAX, LAG_MS_MIN))
    tally.fault(`those who read waited ${disturbedLagMs} ms instead of ${usualLagMs}`);
  tally.note(
    `all cut off after ${(slowestMs / 1000).toFixed(1)} s; ${grown}; 99 of 100 events reached ${READERS} who read ` +
      `within ${disturbedLagMs} ms, before that within ${usualLagMs} ms`,
  );
  return tally.outcome();
}

/** Resolves to the MiB that are still held some time after the connections are closed. */
async function leftMib(held: MemoryGrowth): Promise<number> {
  let left = Infinity;
  for (let tries = 0; tries < LEFT_TRIES_MAX && left > LEFT_MIB_MAX; tries++) {
    left = await held.mib();
    await new Promise((resolve) => setTimeout(resolve, LEFT_POLL_MS));
  }
  return left;
}

async function readersThatAsk({ tries, tally, home: makeHome }: Context): Promise<Outcome> {
  const home = makeHome();
  const stage = await scene(home, countedHeap(home));
  const { honest, jobIds } = stage;
  const questions = Array.from({ length: QUESTIONS }, () => [
    ...jobIds.map((jobId) => question('job.subscribe', { jobId, after: 0 })),
    question('job.list', {}),
  ]).flat();
  // The first reader brings the heap to its working size.
  const [first] = await connected(home, 1);
  await stopReading(first, jobIds[0], questions);
  await cutOff(stage);
  first.close();

  const held = await MemoryGrowth.since(home, HELD);
  const readers = await connected(home, tries);
  await Promise.all(readers.map((reader) => stopReading(reader, jobIds[0], questions)));
  const peakMib = await held.peakMib(async () => {
    // Another stream is not disturbed.
    const jobId = await honest.submit('generate', generation(99));
    await honest.subscribe(jobId);
    await honest.untilEnd(jobId);
    await tally.try(() => checkWhole(honest.events.filter((event) => event.jobId === jobId)));
    await cutOff(stage);
  });
  const after = held.judge(tally, await leftMib(held), LEFT_MIB_MAX);
  await checkNoLoss(tally, stage, readers);
  tally.note(`${held.judge(tally, peakMib, ASKER_MIB_MAX * tries)} for them; afterwards ${after}`);
  return tally.outcome();
}

export const slowReaderRows: readonly Row[] = [
  {
    name: 'R22',
    title:
      'readers that stop reading are cut off, take 16 MiB together at most, slow no other one, and go on without a loss',
    tries: 10,
    short: 0,
    run: readersThatStop,
  },
  {
    name: 'R22q',
    title: 'readers that ask on and on and read nothing: 1 MiB is held for each, none of it afterwards',
    tries: 10,
    short: 0,
    run: readersThatAsk,
  },
];
