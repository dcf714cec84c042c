// A reply that says that something was stored leaves after it was. A trace of the daemon's system calls shows it: when a reply is
// written to its socket, what was written to the database's log since the reply before is on the disk, as fsync has returned.

import { readFileSync } from 'node:fs';
import path from 'node:path';
import type { JobState } from '../../src/daemon/protocol/jobs.ts';
import type { DataHome } from '../e2e/daemon-fixture.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';
import { Strace } from './strace.ts';
import { makeModel, submit, trainSpec } from './training.ts';

const ACTIONS = ['job.pause', 'job.resume', 'job.cancel'] as const;
const ANSWERS_A_JOB = 1 + ACTIONS.length;
const LOG = '/gptd.db-wal>';

/** One reply in the trace, and what happened to the database's log since the reply before. */
interface Interval {
  readonly id: number;
  writes: number;
  /** The number of writes that no sync has followed when the reply leaves. */
  loose: number;
}

/** Reads the intervals of a trace by `strace -f -y`, in which a call that another thread interrupts takes two lines. */
function intervalsOf(trace: string): Interval[] {
  const intervals: Interval[] = [];
  /** The threads whose sync is not over, each with the number of writes that it covers: those that were over when it began. */
  const syncing = new Map<string, number>();
  const writing = new Set<string>();
  let [writes, loose] = [0, 0];
  const synced = (covered: number): void => {
    loose = Math.max(0, loose - covered);
  };
  for (const line of trace.split('\n')) {
    const parts = /^(\d+) +(.*)$/.exec(line);
    if (parts === null) continue;
    const [, thread, rest] = parts;
    const unfinished = rest.endsWith('<unfinished ...>');
    if (rest.startsWith('<... ')) {
      if (writing.delete(thread)) loose += 1;
      const covered = syncing.get(thread);
      if (covered !== undefined && / = 0$/.test(rest)) synced(covered);
      syncing.delete(thread);
    } else if (rest.startsWith('pwrite64(') && rest.includes(LOG)) {
      writes += 1;
      if (unfinished) writing.add(thread);
      else loose += 1;
    } else if (/^f(data)?sync\(/.test(rest) && rest.includes(LOG)) {
      if (unfinished) syncing.set(thread, loose);
      else if (/ = 0$/.test(rest)) synced(loose);
    } else {
      // The text stands within strace's quotes.
      const id = /^(?:write|writev|sendto|sendmsg)\(.*\\"id\\":(\d+),\\"result\\"/.exec(rest)?.[1];
      if (id === undefined) continue;
      intervals.push({ id: Number(id), writes, loose: loose + writing.size });
      [writes, loose] = [0, 0];
    }
  }
  return intervals;
}

/** Begins a training and pauses it: other trainings of the model wait behind it, and write nothing by themselves. */
async function holdLane(home: DataHome): Promise<void> {
  const first = (await submit(home, 'm', { steps: 10_000 }))!;
  const client = await home.connect();
  await client.subscribe(first);
  await client.untilStep(first, 1);
  await client.request('job.pause', { jobId: first });
  client.close();
}

async function acknowledged({ tries, tally, home: makeHome }: Context): Promise<Outcome> {
  const home = makeHome();
  await home.start({ workers: 1 });
  await makeModel(home, 'm');
  await holdLane(home);
  const trace = path.join(home.dir, 'trace');
  const calls = 'trace=pwrite64,fsync,fdatasync,write,writev,sendto,sendmsg';
  const strace = await Strace.attach(home.daemon.pid, ['-y', '-s', '200', '-o', trace, '-e', calls]);
  const client = await home.connect();
  const wanted: JobState[] = ['paused', 'queued', 'cancelled'];
  const jobs = Math.ceil(tries / ANSWERS_A_JOB);
  for (let i = 0; i < jobs; i++) {
    const jobId = await client.submit('train', trainSpec('m'));
    for (const [k, action] of ACTIONS.entries()) {
      const { state } = await client.request<{ state: JobState }>(action, { jobId });
      check(state === wanted[k], `${action} left the job ${state}`);
    }
  }
  client.close();
  await strace.detach();
  const intervals = intervalsOf(readFileSync(trace, 'utf8'));
  check(intervals.length === jobs * ANSWERS_A_JOB, `the trace has ${intervals.length} answers`);
  for (const { id, writes, loose } of intervals) {
    await tally.try(() => {
      check(writes > 0, `answer ${id} left, and nothing was written`);
      check(loose === 0, `answer ${id} left with ${loose} of ${writes} writes that were not on the disk`);
    });
  }
  const total = intervals.reduce((sum, { writes }) => sum + writes, 0);
  tally.note(
    `${total} writes to the log before ${intervals.length} answers: to submissions, pauses, resumes and cancels`,
  );
  return tally.outcome();
}

export const acknowledgedRows: readonly Row[] = [
  {
    name: 'R2',
    title: 'no answer leaves before what it acknowledges is on the disk: the order of system calls',
    tries: 1000,
    short: 40,
    needs: ['strace'],
    run: acknowledged,
  },
];
