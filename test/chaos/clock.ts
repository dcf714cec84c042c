// The wall clock jumps by hours and days, forwards and backwards, while jobs run: libfaketime shows it to the daemon, and a file
// says what it shows. Only times in records may change: bits, tokens, order, connections and what is kept stay the same.

import { existsSync, readdirSync, renameSync } from 'node:fs';
import path from 'node:path';
import type { JobEvent, JobRecord } from '../../src/daemon/protocol/jobs.ts';
import { generateResult, type DataHome, type RawClient } from '../e2e/daemon-fixture.ts';
import { TINY } from './probe.ts';
import type { Random } from './random.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';
import { checkSame, essence, makeModel, submit, upload, wholeLog, type Essence } from './training.ts';

const HOUR_MS = 3600_000;
const JUMP_HOURS = [24, -24, -1, 48, -48, 1, 24 * 365, 0] as const;
const JUMP_EVERY_MS_MAX = 30;
const GENERATE = {
  model: 'reference',
  prompt: 'Line',
  maxTokens: 100,
  onContextFull: 'slide',
  temperature: 1,
  seed: 3,
};

/** The wall clock that one daemon sees. */
class Clock {
  readonly #home: DataHome;
  readonly #random: Random;
  #timer: NodeJS.Timeout | undefined;
  jumps = 0;

  constructor(home: DataHome, random: Random) {
    this.#home = home;
    this.#random = random;
    this.set(0);
  }

  /** The environment that the daemon is started with. */
  get env(): Record<string, string> {
    return {
      LD_PRELOAD: fakeTimeLibrary(),
      FAKETIME_TIMESTAMP_FILE: path.join(this.#home.dir, 'clock'),
      FAKETIME_NO_CACHE: '1',
      // Only the wall clock jumps, because nobody can set the monotonic one.
      FAKETIME_DONT_FAKE_MONOTONIC: '1',
    };
  }

  set(hours: number): void {
    // A rename replaces the file at once, so that the daemon never sees half of it.
    renameSync(this.#home.write('clock.new', `${hours < 0 ? '' : '+'}${hours}h`), path.join(this.#home.dir, 'clock'));
    this.jumps += 1;
  }

  /** Jumps again and again until `stop`. */
  go(): void {
    this.set(this.#random.pick(JUMP_HOURS));
    this.#timer = setTimeout(() => this.go(), this.#random.integer(1, JUMP_EVERY_MS_MAX));
  }

  stop(): void {
    clearTimeout(this.#timer);
  }
}

function fakeTimeLibrary(): string {
  const files = readdirSync('/usr/lib').map((folder) => `/usr/lib/${folder}/faketime/libfaketimeMT.so.1`);
  const found = files.find((file) => existsSync(file));
  check(found !== undefined, 'libfaketimeMT.so.1 is not in /usr/lib/*/faketime');
  return found;
}

/** Trains and generates at once while the clock jumps, and kills the daemon in the middle if `kill` is set. */
async function checkWork(
  home: DataHome,
  {
    model,
    clock,
    kill,
    expected,
  }: { model: string; clock: Clock; kill: boolean; expected: { training: Essence; ids: readonly number[] } },
): Promise<void> {
  const jobId = (await submit(home, model))!;
  const client = await home.connect();
  await client.subscribe(jobId);
  const generation = await client.submit('generate', GENERATE);
  if (kill) {
    await client.untilStep(jobId, 4);
    await home.restart('SIGKILL', { workers: 2, env: clock.env });
  } else {
    await client.untilEnd(jobId);
    // A connection still works after it was quiet for days by the clock.
    await client.request('daemon.status');
  }
  client.close();
  checkSame(await wholeLog(home, jobId), expected.training);
  const { ids } = generateResult(await wholeLog(home, generation));
  check(JSON.stringify(ids) === JSON.stringify(expected.ids), 'other tokens were generated');
}

/** Checks that jobs of one lane are listed and begun in the order of their submission, although the clock goes back between them. */
async function checkOrder(client: RawClient, { clock, prefix }: { clock: Clock; prefix: string }): Promise<void> {
  const jobIds: string[] = [];
  for (const [i, hours] of [24, 0, -24].entries()) {
    clock.set(hours);
    const model = `${prefix}-${i}`;
    jobIds.push(await client.submit('create', { model, config: TINY, tokenizer: 'byte' }));
    await client.subscribe(jobIds[i]);
  }
  for (const jobId of jobIds) await client.untilEnd(jobId);
  const { jobs } = await client.request<{ jobs: JobRecord[] }>('job.list', { kind: 'create', limit: 3 });
  check(jobs.map(({ jobId }) => jobId).join() === [...jobIds].reverse().join(), 'jobs are listed in another order');
  const began = client.events.filter(({ type, jobId }) => type === 'started' && jobIds.includes(jobId));
  check(began.map(({ jobId }) => jobId).join() === jobIds.join(), 'jobs began in another order');
}

/** Checks that what was uploaded is there when a job asks for it, whatever was tidied up in between. */
async function checkUpload(
  home: DataHome,
  { client, clock, name }: { client: RawClient; clock: Clock; name: string },
): Promise<void> {
  const digest = await upload(home, `${name} is a text that no other try has. `.repeat(20));
  for (const hours of [48, -48]) {
    clock.set(hours);
    await client.follow('create', { model: name, config: TINY, tokenizer: 'byte' });
    await client.request('model.delete', { model: name });
    await client.request('daemon.status');
  }
  const jobId = await client.submit('train', { model: 'reference', data: [digest], steps: 1, contextLength: 8 });
  await client.request('job.cancel', { jobId });
}

async function clockJumps({ tries, random, tally, home: makeHome }: Context): Promise<Outcome> {
  const home = makeHome();
  const clock = new Clock(home, random);
  await home.start({ workers: 2, env: clock.env });
  await makeModel(home, 'reference');
  const steady = await home.connect();
  const { ids } = generateResult(await steady.follow('generate', GENERATE));
  steady.close();
  await makeModel(home, 'steady');
  const undisturbed = await wholeLog(home, (await submit(home, 'steady'))!);
  const expected = { training: essence(undisturbed), ids };
  let spanHours = 0;
  for (let i = 0; i < tries; i++) {
    const model = `m${i}`;
    clock.set(0);
    await makeModel(home, model);
    await tally.try(async () => {
      clock.go();
      await checkWork(home, { model, clock, kill: i % 4 === 3, expected }).finally(() => clock.stop());
      const client = await home.connect();
      await checkOrder(client, { clock, prefix: `o${i}` });
      await checkUpload(home, { client, clock, name: `u${i}` });
      spanHours = Math.max(spanHours, spanOf(client.events));
      client.close();
    });
  }
  if (spanHours < 24) tally.fault(`the daemon's clock jumped by ${spanHours.toFixed(1)} hours only`);
  tally.note(`${clock.jumps} jumps; events of one connection were ${spanHours.toFixed(0)} hours apart`);
  return tally.outcome();
}

function spanOf(events: readonly JobEvent[]): number {
  const times = events.map(({ at }) => at);
  return (Math.max(...times) - Math.min(...times)) / HOUR_MS;
}

export const clockRows: readonly Row[] = [
  {
    name: 'R20',
    title: 'jumps of the wall clock by hours and days change no bit, no token, no order, and lose nothing',
    tries: 40,
    short: 1,
    needs: ['faketime'],
    run: clockJumps,
  },
];
