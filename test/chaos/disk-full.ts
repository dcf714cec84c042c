// The disk fills up under a training job. The job is paused within seconds and says why, the daemon lives on, and the job continues
// by itself when there is room, to the same bits. The disk is a file system in memory that the row mounts.

import { spawnSync } from 'node:child_process';
import { rmSync, statfsSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import type { JobRecord } from '../../src/daemon/protocol/jobs.ts';
import type { DataHome } from '../e2e/daemon-fixture.ts';
import { check, type Row } from './row.ts';
import { checkSame, essence, makeModel, submit, wholeLog } from './training.ts';

const DISK_MEGABYTES = 160;
const PAUSE_MS_MAX = 5000;
const POLL_MS = 20;
/** The job has so many steps that it still runs when the disk is full, and keeps every checkpoint, so that each needs room. */
const RUN = { steps: 150, keepLast: 100 };

const isRoot = process.getuid?.() === 0;

function run(file: string, ...args: string[]): void {
  const { status, stderr } = spawnSync(file, args, { encoding: 'utf8' });
  check(status === 0, `${file} ${args.join(' ')} ended with ${String(status)}: ${stderr}`);
}

export const diskFullRows: readonly Row[] = [
  {
    name: 'R5',
    title: 'a full disk pauses training within 5 s with a reason, and it goes on to the same bits when there is room',
    tries: 20,
    short: 1,
    needs: ['mount', 'umount', 'fallocate', ...(isRoot ? [] : ['the rights of root'])],
    async run({ tries, random, tally, home: makeHome }) {
      const home = makeHome();
      run('mount', '-t', 'tmpfs', '-o', `size=${DISK_MEGABYTES}m,mode=0700`, 'tmpfs', home.dir);
      try {
        await home.start({ workers: 2 });
        await makeModel(home, 'reference');
        const reference = essence(await wholeLog(home, (await submit(home, 'reference', RUN))!));
        for (let i = 0; i < tries; i++) {
          await tally.try(async () => {
            const model = `m${i}`;
            await makeModel(home, model);
            const jobId = (await submit(home, model, RUN))!;
            await fillAndFree(home, { jobId, atStep: random.integer(1, 10) });
            checkSame(await wholeLog(home, jobId), reference);
            await home.json(['models', 'rm', model]);
          });
        }
        await home.signal('SIGTERM');
      } finally {
        // A process that still runs has files open there, so the file system goes when the last is closed.
        run('umount', '--lazy', home.dir);
      }
      return tally.outcome();
    },
  },
];

/** Takes all that is free. The daemon may take some of it first, and then nothing is given: another try asks for what is left. */
function fill(dir: string, filler: string): void {
  for (let tries = 0; tries < 100; tries++) {
    const { bavail, bsize } = statfsSync(dir);
    if (spawnSync('fallocate', ['-l', String(bavail * bsize), filler]).status === 0) return;
  }
  check(false, 'the disk could not be filled');
}

async function fillAndFree(home: DataHome, { jobId, atStep }: { jobId: string; atStep: number }): Promise<void> {
  const filler = path.join(home.dir, 'filler');
  const client = await home.connect();
  try {
    await client.subscribe(jobId);
    await client.untilStep(jobId, atStep);
    fill(home.dir, filler);
    const filledAt = performance.now();
    for (;;) {
      const { state } = await client.request<JobRecord>('job.get', { jobId });
      if (state === 'paused') break;
      check(state === 'running', `the job is ${state}`);
      check(performance.now() - filledAt < PAUSE_MS_MAX, 'the job was not paused in time');
      await new Promise((resolve) => setTimeout(resolve, POLL_MS));
    }
    const why = await client.until(
      (event) => event.type === 'log' && event.data.message.startsWith('Paused. The disk'),
    );
    check(why.jobId === jobId, 'another job was paused');
    await client.request('daemon.status');
    rmSync(filler, { force: true });
    await client.until((event) => event.type === 'log' && event.data.message === 'Resumed.');
  } finally {
    rmSync(filler, { force: true });
    client.close();
  }
}
