// Connections ask for many long replies at once and read none of them: a list of jobs over a WebSocket, or a file over HTTP. However
// many replies a client asks for, the daemon makes one at a time.

import { randomBytes } from 'node:crypto';
import net from 'node:net';
import type { Daemon, RawClient } from '../e2e/daemon-fixture.ts';
import { HELD, MemoryGrowth } from './memory-growth.ts';
import { countedHeap, makeModel, MIB } from './probe.ts';
import { portOf } from './raw-socket.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';
import { trainSpec, upload, uploadText } from './training.ts';

const QUESTIONS = 64;
/** A list of so many jobs would be longer than a reply may be, which is 4 MiB. */
const JOBS = 9;
const PROMPT_CHARACTERS = 500_000;
/** A file is read in pieces, and this one has two. */
const FILE_BYTES = 8 * MIB;
/** A connection holds two pieces of a file, and some more. */
const HELD_MIB_MAX = 9;
const LEFT_MIB_MAX = 1;
const WATCH_MS = 2_000;

/** Connects and asks. Resolves to a function that ends the connection. */
type Asker = (daemon: Daemon) => Promise<() => void>;

function listing(connect: () => Promise<RawClient>): Asker {
  return async () => {
    const { socket } = await connect();
    socket.pause();
    for (let id = 0; id < QUESTIONS; id++) {
      socket.send(JSON.stringify({ jsonrpc: '2.0', id, method: 'job.list', params: {} }));
    }
    return () => socket.terminate();
  };
}

function fetching(digest: string): Asker {
  return async (daemon) => {
    const socket = net.connect(portOf(daemon), '127.0.0.1').on('error', () => undefined);
    await new Promise((resolve) => socket.once('connect', resolve));
    socket.pause();
    const request = `GET /v1/blobs/sha256:${digest} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer ${daemon.token}\r\n\r\n`;
    socket.write(request.repeat(QUESTIONS));
    return () => socket.destroy();
  };
}

async function longReplies({ tries, tally, home: makeHome }: Context): Promise<Outcome> {
  const home = makeHome();
  const daemon = await home.start({ env: countedHeap(home) });
  await makeModel(home);
  await uploadText(home);
  const honest = await home.connect();
  for (let i = 0; i < JOBS; i++) {
    const samplePrompt = String(i).repeat(PROMPT_CHARACTERS);
    const jobId = await honest.submit('train', { ...trainSpec('m'), sampleEvery: 100, samplePrompt });
    await honest.request('job.cancel', { jobId });
  }
  const digest = await upload(home, randomBytes(FILE_BYTES / 2).toString('hex'));
  const askers: readonly (readonly [string, Asker])[] = [
    ['job.list', listing(() => home.connect())],
    ['a file', fetching(digest)],
  ];
  for (const [what, ask] of askers) {
    // The first connection brings the heap to its working size.
    (await ask(daemon))();
    const held = await MemoryGrowth.since(home, HELD);
    const ends: (() => void)[] = [];
    const peakMib = await held.peakMib(async () => {
      for (let i = 0; i < tries; i++) await tally.try(async () => void ends.push(await ask(daemon)));
      await new Promise((resolve) => setTimeout(resolve, WATCH_MS));
      const { jobs } = await honest.request<{ jobs: readonly unknown[] }>('job.list');
      check(jobs.length === JOBS - 1, `another client was told of ${jobs.length} jobs`);
    });
    for (const end of ends) end();
    const told = held.judge(tally, peakMib, HELD_MIB_MAX * tries);
    await new Promise((resolve) => setTimeout(resolve, 2000));
    const left = held.judge(tally, await held.mib(), LEFT_MIB_MAX);
    tally.note(`${what}: ${told} for ${tries} connections; afterwards ${left}`);
  }
  return tally.outcome();
}

export const longReplyRows: readonly Row[] = [
  {
    name: 'R22l',
    title: 'long replies, 64 asked for at once and none read: 9 MiB are held for each connection, none afterwards',
    tries: 10,
    short: 1,
    run: longReplies,
  },
];
