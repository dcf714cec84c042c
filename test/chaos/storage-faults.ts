// Durability under faults of storage: the daemon is killed in a chosen system call of a checkpoint, or at any moment, or a call of its
// storage fails. What the client was told before is there afterwards, and what it was not told is whole or not there. The next daemon
// finishes the work that was asked for, to the same bits.

import { readFileSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import type { JobEvent } from '../../src/daemon/protocol/jobs.ts';
import type { VerifyResult } from '../../src/daemon/protocol/history.ts';
import { generateResult, RpcRefusal, trainResult, type DataHome, type StartOptions } from '../e2e/daemon-fixture.ts';
import { makeModel, queried, TINY } from './probe.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';
import { Strace } from './strace.ts';
import { checkGapless, upload } from './training.ts';

const TEXT = 'What is written is written, and what is not is not. '.repeat(20);
const CALLS = ['pwrite64', 'fsync', 'fdatasync', 'ftruncate'] as const;
type Call = (typeof CALLS)[number];
/** No attack makes a job take so long. */
const HANG_MS = 30_000;
const RANDOM_MOMENTS = 200;
const MOMENT_MS_MAX = 150;

interface Wish {
  readonly kind: 'create' | 'train' | 'generate';
  readonly spec: object;
  readonly key: string;
}

/** What a client was told about a wish: nothing, or the job and some of its events. */
interface Told {
  jobId: string | null;
  events: readonly JobEvent[];
  /** Why the daemon did not take the wish. */
  refusal?: string;
}

/** What an undisturbed daemon makes of the wishes. */
interface Expected {
  readonly blob: string;
  readonly digest: string;
  readonly ids: readonly number[];
}

const train = (model: string, { blob }: Pick<Expected, 'blob'>, key = `train ${model}`): Wish => ({
  kind: 'train',
  spec: { model, data: [blob], steps: 1, batchSize: 1, contextLength: 16, valSplit: 0, checkpointEvery: 0 },
  key,
});
const create = (model: string): Wish => ({
  kind: 'create',
  spec: { model, config: TINY, tokenizer: 'byte' },
  key: `create ${model}`,
});
const generate = (name: string): Wish => ({
  kind: 'generate',
  spec: { model: 'm', prompt: 'What', maxTokens: 40, temperature: 1, seed: 4 },
  key: `generate ${name}`,
});

/** Submits all wishes and listens to the end, or until the daemon is gone. */
async function ask(home: DataHome, wishes: readonly Wish[]): Promise<Told[]> {
  const told = wishes.map((): Told => ({ jobId: null, events: [] }));
  let client;
  try {
    client = await home.connect();
    for (const [i, { kind, spec, key }] of wishes.entries()) {
      told[i].jobId = await client.submit(kind, spec, key);
      await client.subscribe(told[i].jobId);
    }
    for (const { jobId } of told) await client.untilEnd(jobId!);
  } catch (error) {
    // If it is no refusal the daemon is gone, and what was heard until then counts.
    if (error instanceof RpcRefusal) told.find(({ jobId }) => jobId === null)!.refusal = error.message;
  }
  for (const one of told) one.events = client?.events.filter(({ jobId }) => jobId === one.jobId) ?? [];
  client?.close();
  return told;
}

/** Submits a wish again under its key and resolves to the whole log. What was told before is in it, as it was told. */
async function keptLog(home: DataHome, { wish, told }: { wish: Wish; told: Told }): Promise<JobEvent[]> {
  const client = await home.connect();
  try {
    const jobId = await client.submit(wish.kind, wish.spec, wish.key);
    check(told.jobId === null || told.jobId === jobId, `the job of ${wish.key} that was acknowledged is lost`);
    await client.subscribe(jobId);
    await client.untilEnd(jobId);
    const before = client.events.slice(0, told.events.length);
    check(JSON.stringify(before) === JSON.stringify(told.events), `events of ${wish.key} that were told are lost`);
    return client.events;
  } finally {
    client.close();
  }
}

function checkResult(wish: Wish, { events, expected }: { events: readonly JobEvent[]; expected: Expected }): void {
  checkGapless(events, `the log of ${wish.key}`);
  if (wish.kind === 'train') check(trainResult(events).digest === expected.digest, `${wish.key} has other weights`);
  else if (wish.kind === 'create') check(events.at(-1)?.type === 'succeeded', `${wish.key} failed`);
  else check(generateResult(events).ids.join() === expected.ids.join(), `${wish.key} has other tokens`);
}

/** Checks that the database and the model's weights are whole, and then deletes the model. */
async function checkStored(home: DataHome, model: string): Promise<void> {
  const client = await home.connect();
  try {
    const { ok, problem } = await client.request<VerifyResult>('model.verify', { model });
    check(ok, `the checkpoint of ${model} is damaged: ${String(problem)}`);
    check(queried(home, 'PRAGMA integrity_check') === 'ok', 'the database is damaged');
    check(queried(home, 'SELECT count(*) FROM pragma_foreign_key_check') === 0, 'rows refer to nothing');
    await client.request('model.delete', { model });
  } finally {
    client.close();
  }
}

async function inTime<T>(work: Promise<T>, what: string): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  const late = new Promise<never>((_, reject) => {
    timer = setTimeout(() => reject(new Error(`${what}: not within ${HANG_MS} ms`)), HANG_MS);
  });
  return await Promise.race([work, late]).finally(() => clearTimeout(timer));
}

/** Starts a daemon with a model to generate with. Resolves to what undisturbed work gives, and to the storage calls of one training. */
async function prepared(
  home: DataHome,
  options: StartOptions = {},
): Promise<{ expected: Expected; calls: { call: Call; n: number }[] }> {
  await home.start({ workers: 1, ...options });
  await makeModel(home);
  const blob = await upload(home, TEXT);
  // The first training also prepares the data, so the second one is counted.
  await ask(home, [create('first'), train('first', { blob }), create('counted')]);
  const trace = path.join(home.dir, 'trace');
  const strace = await Strace.attach(home.daemon.pid, ['-o', trace, '-e', `trace=${CALLS.join()}`]);
  const [trained] = await ask(home, [train('counted', { blob })]);
  await strace.detach();
  const lines = readFileSync(trace, 'utf8').split('\n');
  const [generated] = await ask(home, [generate('undisturbed')]);
  const calls = CALLS.flatMap((call) => {
    const count = lines.filter((line) => line.includes(` ${call}(`)).length;
    return Array.from({ length: count }, (_, i) => ({ call, n: i + 1 }));
  });
  const expected = { blob, digest: trainResult(trained.events).digest, ids: generateResult(generated.events).ids };
  return { expected, calls };
}

/** Returns the i-th of `count` items that are spread over a list. */
const spread = <T>(list: readonly T[], { i, count }: { i: number; count: number }): T =>
  list[Math.min(list.length - 1, Math.floor((i * list.length) / count))];

async function killed({ tries, random, tally, home: makeHome }: Context): Promise<Outcome> {
  const home = makeHome();
  const { expected, calls } = await prepared(home);
  const moments = Math.min(RANDOM_MOMENTS, Math.floor(tries / 2));
  const sweep = tries - moments;
  let inCall = 0;
  for (let i = 0; i < tries; i++) {
    const model = `k${i}`;
    await tally.try(async () => {
      const { process: running, pid } = home.daemon;
      const wishes = i < sweep ? [train(model, expected)] : [create(model), train(model, expected), generate(model)];
      let told: Told[];
      if (i < sweep) {
        const { call, n } = spread(calls, { i, count: sweep });
        await ask(home, [create(model)]);
        const inject = `inject=${call}:signal=SIGKILL:when=${n}`;
        const strace = await Strace.attach(pid, ['-o', '/dev/null', '-e', `trace=${call}`, '-e', inject]);
        told = await inTime(ask(home, wishes), 'the work is done or cut');
        if (told[0].events.at(-1)?.type !== 'succeeded') inCall += 1;
        else process.kill(pid, 'SIGKILL');
        await inTime(running.ended, 'the daemon ends');
        await strace.detach();
      } else {
        const timer = setTimeout(() => process.kill(pid, 'SIGKILL'), random.integer(0, MOMENT_MS_MAX));
        told = await inTime(ask(home, wishes), 'the work is done or cut');
        await inTime(running.ended, 'the daemon ends').finally(() => clearTimeout(timer));
      }
      await home.start({ workers: 1 });
      for (const [k, wish] of wishes.entries()) {
        checkResult(wish, {
          events: await inTime(keptLog(home, { wish, told: told[k] }), 'the job goes on'),
          expected,
        });
      }
      await checkStored(home, model);
    });
  }
  tally.note(
    `${sweep} kills in ${calls.length} calls of storage (${countsOf(calls)}), ${inCall} of them before the end`,
  );
  tally.note(`${moments} kills at random moments of three jobs`);
  return tally.outcome();
}

function countsOf(calls: readonly { readonly call: Call }[]): string {
  return CALLS.map((name) => `${name} ${calls.filter(({ call }) => call === name).length}`).join(', ');
}

/** The errors that calls fail with: one call, or all from there on. */
const ERRORS = ['EIO', 'EIO', 'ENOSPC'] as const;

async function failing({ tries, random, tally, home: makeHome }: Context): Promise<Outcome> {
  const home = makeHome();
  const { expected, calls } = await prepared(home, { mayFail: true });
  const trace = path.join(home.dir, 'faults');
  const ends = new Map<string, number>();
  for (let i = 0; i < tries; i++) {
    const model = `f${i}`;
    const { call, n } = spread(calls, { i, count: tries });
    const error = random.pick(ERRORS);
    // The daemon waits while a disk stays full, which is the subject of another row.
    const forever = error === 'EIO' && random.once(3);
    await tally.try(async () => {
      const fault = `${error} in ${call} ${n}${forever ? ' and after' : ''}`;
      try {
        const end = await faulted(home, { model, expected, trace, inject: [call, error, `${n}${forever ? '+' : ''}`] });
        const what = `${error}${forever ? ' forever' : ''}: ${end}`;
        ends.set(what, (ends.get(what) ?? 0) + 1);
      } catch (failure) {
        throw new Error(`${fault}: ${String(failure)}`, { cause: failure });
      }
    });
  }
  const counted = [...ends].sort().map(([end, count]) => `${end} ${count}`);
  tally.note(`one call of ${calls.length} (${countsOf(calls)}) or all from it on: ${counted.join(', ')}`);
  return tally.outcome();
}

/** Trains under a fault, ends the daemon, and checks what the next one finds. Resolves to how the training ended. */
async function faulted(
  home: DataHome,
  {
    model,
    expected,
    trace,
    inject: [call, error, when],
  }: { model: string; expected: Expected; trace: string; inject: readonly [Call, string, string] },
): Promise<string> {
  const { process: running, pid } = home.daemon;
  const wish = train(model, expected);
  await ask(home, [create(model)]);
  const inject = `inject=${call}:error=${error}:when=${when}`;
  const strace = await Strace.attach(pid, ['-o', trace, '-e', `trace=${call}`, '-e', inject]);
  const [told] = await inTime(ask(home, [wish]), 'the work is done or cut').finally(() => strace.detach());
  const last = told.events.at(-1);
  const end = told.refusal === undefined ? last?.type : 'refused';
  if (told.refusal !== undefined) check(saysWhy(told.refusal), `the submission was refused: ${told.refusal}`);
  const isOver = end === 'succeeded' || end === 'failed' || end === 'refused';
  // A job without an end was left by a daemon that could not write and has ended by itself.
  if (isOver) process.kill(pid, 'SIGTERM');
  const { exitCode, stderr } = await inTime(running.ended, 'the daemon ends');
  check(exitCode === 0 || (exitCode === 1 && saysWhy(stderr)), `the daemon ended with ${String(exitCode)}: ${stderr}`);
  await home.start({ workers: 1, mayFail: true });
  const events = await inTime(keptLog(home, { wish, told }), 'the job goes on');
  await checkAfterFault(home, { wish, events, expected, model });
  if (!readFileSync(trace, 'utf8').includes('(INJECTED)')) return 'not reached';
  return isOver ? end : 'daemon ended';
}

const saysWhy = (text: string): boolean => /cannot be written|disk|SQLITE_(IOERR|FULL)/i.test(text);

/** Checks that the job succeeded, or that it says why it failed and succeeds when it is submitted again. */
async function checkAfterFault(
  home: DataHome,
  { wish, events, expected, model }: { wish: Wish; events: JobEvent[]; expected: Expected; model: string },
): Promise<void> {
  const last = events.at(-1);
  if (last?.type === 'failed') {
    check(saysWhy(last.data.error.message), `the job failed of "${last.data.error.message}"`);
    const again = train(model, expected, `${wish.key} again`);
    const [{ events: second }] = await inTime(ask(home, [again]), 'the work is done again');
    checkResult(again, { events: second, expected });
  } else checkResult(wish, { events, expected });
  await checkStored(home, model);
}

export const storageFaultRows: readonly Row[] = [
  {
    name: 'R1',
    title:
      'SIGKILL in every storage call of a checkpoint and at 200 random moments loses nothing that was acknowledged',
    tries: 400,
    short: 6,
    needs: ['strace'],
    run: killed,
  },
  {
    name: 'R4',
    title: 'storage calls that fail commit nothing bad, say why, and the work is done after a restart',
    tries: 200,
    short: 4,
    needs: ['strace'],
    run: failing,
  },
];
