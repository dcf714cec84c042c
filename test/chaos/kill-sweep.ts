// Training is interrupted at chosen pieces of every kind of work: forward, backward, weight gradients, optimizer, reading and writing
// a checkpoint, and writing events. The daemon is killed, told to stop or loses the thread, or the job is paused. Then the job goes on,
// after a restart with another number of workers, to the bits of a run that nothing disturbed.

import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import type { DataHome } from '../e2e/daemon-fixture.ts';
import { check, type Row } from './row.ts';
import { checkSame, essence, type Essence, hookEnv, makeModel, submit, wholeLog } from './training.ts';

const STOP_MS_MAX = 10_000;
const POLL_MS = 2;
/** The kinds of requests to a stage's thread or the store's of which a training job consists. */
const KINDS = [
  ...['trainForward', 'trainBackward', 'trainWeightGradients', 'trainFinish', 'trainUpdate', 'trainRead', 'putChunks'],
  ...[
    'commitCheckpoint',
    'appendEvents',
    'trainLoad',
    'trainEmbed',
    'trainEvaluate',
    'trainSnapshot',
    'beginCheckpoint',
  ],
] as const;
/** Interruptions come within this share of the pieces, because events and reads are grouped differently from run to run. */
const REACHED_SHARE = 0.6;
type Action = 'SIGKILL' | 'SIGTERM' | 'exit' | 'mark';

export const killSweepRows: readonly Row[] = [
  {
    name: 'R9',
    title: 'training interrupted at pieces of every kind of its work ends with the same losses and digest',
    tries: 56,
    short: 3,
    async run({ tries, random, tally, home: makeHome }) {
      const home = makeHome();
      await home.start({ workers: 1 });
      await makeModel(home, 'reference');
      const counts = new Map<number, Map<string, number>>();
      let reference: Essence | undefined;
      /** Resolves to the number of pieces of each kind on the busiest thread of a run that nothing disturbs. */
      const countsOf = async (workers: number): Promise<Map<string, number>> => {
        const known = counts.get(workers);
        if (known !== undefined) return known;
        const log = path.join(home.dir, `count-${workers}`);
        await makeModel(home, `count-${workers}`);
        await home.restart('SIGTERM', { workers, env: hookEnv({ point: 'all:0', action: 'count', log }) });
        const jobId = await submit(home, `count-${workers}`);
        const events = await wholeLog(home, jobId!);
        reference ??= essence(events);
        checkSame(events, reference);
        const counted = readCounts(log);
        counts.set(workers, counted);
        await home.restart('SIGTERM', { workers: 1 });
        return counted;
      };

      const pairs = KINDS.flatMap((kind) =>
        (['SIGKILL', 'SIGTERM', 'exit', 'mark'] as const).map((action) => ({ kind, action })),
      );
      for (let i = 0; i < tries; i++) {
        // Goes through the kinds, and begins each round with another action.
        const { kind, action } =
          pairs[((i % KINDS.length) * 4 + ((i + Math.floor(i / KINDS.length)) % 4)) % pairs.length];
        // The head's stage computes the backward pass in the request of its forward pass, so one worker has no trainBackward.
        const workers = random.integer(kind === 'trainBackward' ? 2 : 1, tries > 8 ? 4 : 2);
        await tally.try(async () => {
          const pieces = (await countsOf(workers)).get(kind) ?? 0;
          check(pieces > 0, `no piece of ${kind} was seen with ${workers} workers`);
          const number = random.integer(1, Math.max(1, Math.floor(pieces * REACHED_SHARE)));
          const log = path.join(home.dir, `interrupt-${i}`);
          const point = `${kind}:${number}`;
          const attack = { model: `m${i}`, action: usable(action, kind), point, log };
          try {
            await makeModel(home, attack.model);
            await home.restart('SIGTERM', { workers, env: hookEnv(attack) });
            const jobId = await interrupted(home, { ...attack, workersAfter: random.integer(1, 3) });
            checkSame(await wholeLog(home, jobId), reference!);
          } catch (error) {
            throw new Error(`${attack.action} at ${point} with ${workers} workers: ${String(error)}`, { cause: error });
          }
        });
        await home.restart('SIGKILL', { workers: 1 });
      }
      tally.note(`kinds of work: ${KINDS.slice(0, tries).join(' ')}`);
      return tally.outcome();
    },
  },
];

/** The death of the store's thread ends the daemon, so SIGKILL stands for it. */
const usable = (action: Action, kind: string): Action =>
  action === 'exit' && !kind.startsWith('train') ? 'SIGKILL' : action;

function readCounts(log: string): Map<string, number> {
  const perThread = new Map<string, number>();
  for (const line of readFileSync(log, 'utf8').trim().split('\n')) perThread.set(line, (perThread.get(line) ?? 0) + 1);
  const counts = new Map<string, number>();
  for (const [line, count] of perThread) {
    const kind = line.split(' ')[1];
    counts.set(kind, Math.max(counts.get(kind) ?? 0, count));
  }
  return counts;
}

/** Submits a job, waits for the interruption and lets the job go on. Resolves to its id. */
async function interrupted(
  home: DataHome,
  attack: { model: string; action: Action; log: string; workersAfter: number },
): Promise<string> {
  const { model, action, log, workersAfter } = attack;
  const { process: running } = home.daemon;
  const jobId = await submit(home, model);
  if (action === 'SIGKILL' || action === 'SIGTERM') {
    await until(() => existsSync(log));
    const toldAt = performance.now();
    const { exitCode, stderr } = await running.ended;
    check(exitCode === (action === 'SIGTERM' ? 0 : null), `the daemon ended with ${String(exitCode)}: ${stderr}`);
    check(performance.now() - toldAt < STOP_MS_MAX, 'the daemon took too long to stop');
    await home.start({ workers: workersAfter });
  } else if (action === 'mark') {
    await until(() => existsSync(log));
    await home.cli(['pause', jobId!]);
    await home.restart('SIGKILL', { workers: workersAfter });
    await home.cli(['resume', jobId!]);
  } else {
    await wholeLog(home, jobId!);
    check(existsSync(log), 'the thread was not interrupted');
  }
  return jobId ?? (await submit(home, model))!;
}

async function until(holds: () => boolean): Promise<void> {
  const endAt = performance.now() + 60_000;
  while (!holds()) {
    check(performance.now() < endAt, 'the interruption did not come');
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}
