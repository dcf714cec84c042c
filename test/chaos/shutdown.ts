// The daemon is stopped by signal, in the middle of a training and with another one in the queue. One SIGTERM stops it after it has
// saved, and a second one ends it at once. Either way both jobs go on after the next start, with other workers, to the bits of a run
// that nothing disturbed.

import { existsSync } from 'node:fs';
import path from 'node:path';
import { ofType, type DataHome, type RawClient } from '../e2e/daemon-fixture.ts';
import { check, type Row } from './row.ts';
import { checkSame, essence, MODEL, trainSpec, uploadText, wholeLog, type Essence } from './training.ts';

/** A step takes long enough that a stop comes in the middle of it. */
const TRAINING = { batchSize: 16, steps: 5 };
const STOP_MS_MAX = 10_000;
const END_MS_MAX = 2000;
const ENDED_BY_SIGNAL = 130;
/** In so many tries some second signals come before the stop is over. */
const IN_TIME_TRIES_MIN = 10;

export const shutdownRows: readonly Row[] = [
  {
    name: 'R19',
    title:
      'SIGTERM refuses new work, saves the next step, keeps the queue and exits 0 within 10 s, a second one ends at once; jobs go on to the bit',
    tries: 50,
    short: 2,
    async run({ tries, random, tally, home: makeHome }) {
      const home = makeHome();
      await home.start({ workers: 2 });
      await uploadText(home);
      const reference = essence(await wholeLog(home, await submitTraining(home, 'reference')));
      const tookMs: number[] = [];
      const endedMs: number[] = [];
      for (let i = 0; i < tries; i++) {
        const [isTwice, step, workers] = [i % 2 === 1, random.integer(1, TRAINING.steps - 2), random.integer(1, 3)];
        await tally.try(async () => {
          try {
            const jobs = [await submitTraining(home, `running${i}`), await submitTraining(home, `queued${i}`)];
            const client = await home.connect();
            await client.subscribe(jobs[0]);
            await client.untilStep(jobs[0], step);
            let isSaved = true;
            if (isTwice) {
              const tookMs = await stopTwice(home);
              isSaved = tookMs === null;
              if (tookMs !== null) endedMs.push(tookMs);
            } else tookMs.push(await stop(home, client, `late${i}`));
            client.close();
            await home.start({ workers });
            await checkContinued(home, { jobs, reference, isSaved });
            await removeModels(home, [`running${i}`, `queued${i}`]);
          } catch (error) {
            throw new Error(`stopped ${isTwice ? 'twice' : 'once'} after step ${step}: ${String(error)}`, {
              cause: error,
            });
          }
        });
      }
      if (tries >= IN_TIME_TRIES_MIN) check(endedMs.length > 0, 'no second signal came in time');
      const slowest = (times: readonly number[]): string => Math.max(...times).toFixed(0);
      tally.note(
        `the slowest stop took ${slowest(tookMs)} ms, the slowest end after a second signal ${slowest(endedMs)} ms; ` +
          `${endedMs.length} second signals came in time`,
      );
      return tally.outcome();
    },
  },
];

/** Submits the creation of a model and its training. Resolves to the training's id. */
async function submitTraining(home: DataHome, model: string): Promise<string> {
  const { seed, ...config } = MODEL;
  const client = await home.connect();
  try {
    await client.submit('create', { model, config, seed, init: 'gpt2', tokenizer: 'byte' });
    return await client.submit('train', { ...trainSpec(model), ...TRAINING });
  } finally {
    client.close();
  }
}

/** Stops the daemon in order, while it takes no new job. Resolves to the milliseconds that the stop took. */
async function stop(home: DataHome, client: RawClient, lateModel: string): Promise<number> {
  const { pid, process: running } = home.daemon;
  const startedAt = performance.now();
  process.kill(pid, 'SIGTERM');
  await running.said('"msg":"stopping"');
  const late = { model: lateModel, config: MODEL };
  const answers = await Promise.allSettled([
    client.submit('create', late),
    home.connect().then((other) => other.submit('create', late)),
  ]);
  check(!answers.some(({ status }) => status === 'fulfilled'), 'a stopping daemon took a job');
  const { exitCode, stderr } = await running.ended;
  const tookMs = performance.now() - startedAt;
  check(exitCode === 0, `the daemon ended with ${String(exitCode)}: ${stderr}`);
  check(tookMs < STOP_MS_MAX, `the stop took ${tookMs.toFixed(0)} ms`);
  check(!existsSync(path.join(home.dir, 'daemon.json')), 'daemon.json was left behind');
  return tookMs;
}

/** Resolves to the milliseconds from the second signal to the end, or to null when the stop was over before. */
async function stopTwice(home: DataHome): Promise<number | null> {
  const { pid, process: running } = home.daemon;
  process.kill(pid, 'SIGTERM');
  await running.said('"msg":"stopping"');
  const startedAt = performance.now();
  running.child.kill('SIGTERM');
  const { exitCode, stderr } = await running.ended;
  const tookMs = performance.now() - startedAt;
  if (exitCode === 0) return null;
  check(exitCode === ENDED_BY_SIGNAL, `the daemon ended with ${String(exitCode)}: ${stderr}`);
  check(tookMs < END_MS_MAX, `the end took ${tookMs.toFixed(0)} ms after the second signal`);
  return tookMs;
}

async function checkContinued(
  home: DataHome,
  {
    jobs,
    reference,
    isSaved,
  }: { readonly jobs: readonly string[]; readonly reference: Essence; readonly isSaved: boolean },
): Promise<void> {
  const [running, queued] = await Promise.all(jobs.map((jobId) => wholeLog(home, jobId)));
  for (const events of [running, queued]) checkSame(events, reference);
  const again = running.findIndex((event) => event.type === 'log' && event.data.message === 'Started again.');
  check(again > 0, 'the running job was not interrupted');
  check(
    !queued.some((event) => event.type === 'log' && event.data.message === 'Started again.'),
    'the queued job had begun',
  );
  if (!isSaved) return;
  const before = running.slice(0, again);
  const saved = ofType(before, 'checkpoint').at(-1)?.data.step;
  const last = ofType(before, 'step').at(-1)?.data.step;
  check(saved === last, `step ${String(last)} was done, and the stop saved step ${String(saved)}`);
}

async function removeModels(home: DataHome, models: readonly string[]): Promise<void> {
  const client = await home.connect();
  for (const model of models) await client.request('model.delete', { model });
  const { models: left } = await client.request<{ models: { name: string }[] }>('model.list');
  client.close();
  check(left.length === 1, `there are models that nobody made: ${JSON.stringify(left.map(({ name }) => name))}`);
}
