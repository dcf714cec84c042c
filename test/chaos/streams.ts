// Streams of events: many readers read one job, and connections are cut at any byte. Every reader ends with each event once, in order,
// whatever happened to its connections. Readers that stop reading are in slow-readers.ts.

import type { JobEvent } from '../../src/daemon/protocol/jobs.ts';
import { ofType, RawClient, type DataHome } from '../e2e/daemon-fixture.ts';
import { CuttingProxy } from './cutting-proxy.ts';
import { makeModel, percentile } from './probe.ts';
import { portOf } from './raw-socket.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';

const TOKENS = 500;
/** The configuration of a model whose context holds a whole generation. */
export const LONG = { context_length: 640 };

export const generation = (seed: number, maxTokens = TOKENS): object => ({
  model: 'm',
  prompt: 'Once',
  temperature: 1,
  maxTokens,
  seed,
});

/** Checks that every event came once and in order, with the tokens from 0 on. */
export function checkWhole(events: readonly JobEvent[], tokens = TOKENS): void {
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
    // Most readers listen from the start. Every fourth one comes when half of the tokens are stored already.
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
    // The job is heard twice: while its tokens are made, and when all are stored.
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

/** Resolves to a job's events, heard over as many connections as it takes. Each is cut at a random byte of what the daemon sends. */
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
    name: 'R23',
    title: 'connections cut at random bytes go on to the very same events',
    tries: 1000,
    short: 15,
    run: cutConnections,
  },
];
