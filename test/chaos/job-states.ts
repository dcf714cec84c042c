// Random sequences of commands to jobs of four kinds, with daemons that are killed and stopped in between. fast-check draws the
// sequences. Every reply is compared with a model of the states that the job may have, and at the end of each sequence every job's
// log shows the states that it went through. Sequences share a daemon, but each has jobs and models of its own.

import fc from 'fast-check';
import {
  isTerminal,
  JOB_STATES,
  JOB_TRANSITIONS,
  type JobEvent,
  type JobRecord,
  type JobState,
} from '../../src/daemon/protocol/jobs.ts';
import type { DaemonStatus } from '../../src/daemon/protocol/daemon.ts';
import { RpcRefusal, type DataHome, type RawClient } from '../e2e/daemon-fixture.ts';
import { makeModel, TINY } from './probe.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';
import { checkGapless, upload } from './training.ts';

const TEXT = 'What was said once is said again, and again after that. '.repeat(20);
const COMMANDS_MAX = 12;
/** A client keeps every reply of its connection, so it is replaced after so many sequences. */
const SEQUENCES_PER_CONNECTION = 200;
/** From so many sequences on, two daemons take half of them each, and restarts are rare in a sequence. */
const MANY = 1000;

/** The states that may follow without a command, also when the daemon is killed and started again. */
const LATER: Readonly<Record<JobState, readonly JobState[]>> = {
  queued: ['queued', 'running', 'succeeded', 'failed'],
  running: ['queued', 'running', 'succeeded', 'failed'],
  paused: ['paused'],
  succeeded: ['succeeded'],
  failed: ['failed'],
  cancelled: ['cancelled'],
};

interface Job {
  readonly kind: Kind;
  jobId: string;
  /** The states that it may have now. */
  may: ReadonlySet<JobState>;
}

/** What the sequence has done so far. The jobs are in the daemon too, so a model belongs to one run. */
interface Model {
  readonly jobs: Job[];
}

/** The daemon under test. */
interface Real {
  readonly home: DataHome;
  client: RawClient;
  readonly prefix: string;
  readonly blob: string;
  readonly seen: Seen;
}

/** Counts what happened in all sequences, for the notes. */
interface Seen {
  commands: number;
  kills: number;
  stops: number;
  jobs: number;
  transitions: Map<string, number>;
}

type Kind = 'params' | 'create' | 'train' | 'generate';
const ACTIONS = ['pause', 'resume', 'cancel'] as const;
type Action = (typeof ACTIONS)[number];
/** The error codes of requests for what is not there, or is in use. */
const REFUSALS = new Set(['not_found', 'conflict']);

type Command = fc.AsyncCommand<Model, Real>;
const later = (state: JobState): ReadonlySet<JobState> => new Set(LATER[state]);

/** Checks that the job may have this state. From now on it may have those that follow. */
function observe(job: Job, { state }: { readonly state: JobState }, what: string): void {
  check(job.may.has(state), `${what}: the ${job.kind} job is ${state}, and may be ${[...job.may].join(', ')}`);
  job.may = later(state);
}

/** Makes a command, which is drawn once and may run many times. One about a job is left out while there is no job. */
const command = (
  name: string,
  run: (model: Model, real: Real) => Promise<void>,
  { aboutJob = false }: { readonly aboutJob?: boolean } = {},
): Command => ({
  check: ({ jobs }) => !aboutJob || jobs.length > 0,
  run,
  toString: () => name,
});

function submit(kind: Kind, slot: number): Command {
  const what = `submit ${kind} ${slot}`;
  return command(what, async (model, real) => {
    const name = `${real.prefix}-${slot}`;
    const specs: Record<Kind, object> = {
      params: {},
      create: { model: name, config: TINY, tokenizer: 'byte' },
      train: { model: name, data: [real.blob], steps: 400, batchSize: 1, contextLength: 16, checkpointEvery: 50 },
      generate: { model: 'm', prompt: 'What', maxTokens: 400, onContextFull: 'slide' },
    };
    await unlessRefused(async () => {
      const submission = { kind, spec: specs[kind] };
      const answer = await real.client.request<Pick<JobRecord, 'jobId' | 'state'>>('job.submit', submission);
      const job: Job = { kind, jobId: answer.jobId, may: later('queued') };
      model.jobs.push(job);
      observe(job, answer, what);
    });
  });
}

function act(action: Action, index: number): Command {
  const what = `${action} ${index}`;
  const run = async ({ jobs }: Model, { client }: Real): Promise<void> => {
    const job = jobs[index % jobs.length];
    const ended = [...job.may].filter(isTerminal);
    const wanted: Record<Action, readonly JobState[]> = {
      pause: ['paused', ...ended],
      // A job that was never paused stays as it is.
      resume: [...LATER.queued, ...ended],
      cancel: job.may.has('paused') ? ['cancelled'] : ['cancelled', ...ended],
    };
    try {
      const answer = await client.request<{ state: JobState }>(`job.${action}`, { jobId: job.jobId });
      job.may = new Set(wanted[action]);
      observe(job, answer, what);
    } catch (error) {
      if (!(error instanceof RpcRefusal) || error.data?.code !== 'conflict') throw error;
      check(action !== 'cancel' && ended.length > 0, `${what} was refused: ${error.message}`);
      job.may = new Set(ended);
    }
  };
  return command(what, run, { aboutJob: true });
}

/** Sends several commands for one job at once, to a daemon that may be killed before it replies. */
function burst(actions: readonly Action[], index: number, { kill }: { readonly kill: boolean }): Command {
  const what = `${actions.join(' + ')} ${index}${kill ? ', killed' : ''}`;
  const run = async ({ jobs }: Model, real: Real): Promise<void> => {
    const job = jobs[index % jobs.length];
    const { jobId, may } = job;
    const sent = Promise.allSettled(actions.map((action) => real.client.request(`job.${action}`, { jobId })));
    if (kill) await restart(real, 'SIGKILL');
    await sent;
    const possible = new Set([...may].flatMap((state) => LATER[state]));
    if ([...may].some((state) => !isTerminal(state))) {
      for (const state of [...LATER.queued, 'paused'] as const) possible.add(state);
      if (actions.includes('cancel')) possible.add('cancelled');
    }
    job.may = possible;
    const found = await real.client.request<JobRecord>('job.get', { jobId });
    observe(job, found, what);
    check(kill || !actions.includes('cancel') || isTerminal(found.state), `${what}: the job is ${found.state}`);
  };
  return command(what, run, { aboutJob: true });
}

const list = (state: JobState): Command =>
  command(`list ${state}`, async ({ jobs }, { client }) => {
    const listed = await client.request<{ jobs: JobRecord[] }>('job.list', { state, limit: 100 });
    for (const record of listed.jobs) {
      check(record.state === state, `a job that is ${record.state} is listed as ${state}`);
      const job = jobs.find(({ jobId }) => jobId === record.jobId);
      if (job !== undefined) observe(job, record, `list ${state}`);
    }
  });

const remove = (slot: number): Command =>
  command(`delete ${slot}`, async (_model, { client, prefix }) => {
    await deleteModel(client, `${prefix}-${slot}`);
  });

const end = (signal: 'SIGKILL' | 'SIGTERM'): Command =>
  command(signal, async ({ jobs }, real) => {
    await restart(real, signal);
    for (const job of jobs) {
      observe(job, await real.client.request<JobRecord>('job.get', { jobId: job.jobId }), signal);
    }
  });

async function restart(real: Real, signal: 'SIGKILL' | 'SIGTERM'): Promise<void> {
  real.seen[signal === 'SIGKILL' ? 'kills' : 'stops'] += 1;
  await real.home.restart(signal, { workers: 1 });
  real.client = await real.home.connect();
}

/** Deletes a model, unless it is in use or not there. */
async function deleteModel(client: RawClient, model: string): Promise<void> {
  await unlessRefused(() => client.request('model.delete', { model }));
}

async function unlessRefused(ask: () => Promise<unknown>): Promise<void> {
  try {
    await ask();
  } catch (error) {
    if (!(error instanceof RpcRefusal) || !REFUSALS.has(error.data?.code ?? '')) throw error;
  }
}

/** Ends all jobs of a sequence and checks the log of each. */
async function judge({ jobs }: Model, { client, prefix, seen }: Real): Promise<void> {
  client.events.length = 0;
  await Promise.all(jobs.map(({ jobId }) => client.request('job.cancel', { jobId })));
  for (const { jobId, kind } of jobs) {
    const record = await client.request<JobRecord>('job.get', { jobId });
    await client.subscribe(jobId);
    await client.untilEnd(jobId);
    const events = client.events.filter((event) => event.jobId === jobId);
    try {
      checkLife(record, { events, transitions: seen.transitions });
    } catch (error) {
      throw new Error(`the ${kind} job: ${String(error)} in ${JSON.stringify(events)}`, { cause: error });
    }
  }
  const { queue } = await client.request<DaemonStatus>('daemon.status');
  check(queue.queued + queue.running + queue.paused === 0, `jobs are left of a sequence: ${JSON.stringify(queue)}`);
  await Promise.all(SLOTS.map((slot) => deleteModel(client, `${prefix}-${slot}`)));
  seen.jobs += jobs.length;
}

/** Returns the state that an event puts its job into, or null for an event that changes no state. */
function stateAfter(event: JobEvent): JobState | null {
  if (isTerminal(event.type)) return event.type;
  if (event.type === 'queued') return 'queued';
  if (event.type === 'started') return 'running';
  if (event.type !== 'log') return null;
  const { message } = event.data;
  if (message === 'Started again.') return 'running';
  if (message === 'Resumed.') return 'queued';
  return message.startsWith('Paused') ? 'paused' : null;
}

/** Checks that the log has no gap, that its states may follow one another and end once, and that the record says the same. */
function checkLife(
  record: JobRecord,
  { events, transitions }: { readonly events: readonly JobEvent[]; readonly transitions: Map<string, number> },
): void {
  checkGapless(events);
  check(events[0]?.type === 'queued', 'the log does not begin with the submission');
  let state: JobState = 'queued';
  for (const event of events.slice(1)) {
    const next = stateAfter(event);
    if (next === null) {
      check(state === 'running', `${event.type} was said by a job that is ${state}`);
      continue;
    }
    // The next daemon queues the job that ran, without an event for it.
    if (state === 'running' && next === 'running') state = 'queued';
    check(JOB_TRANSITIONS[state].includes(next), `${next} follows ${state}`);
    const name = `${state} > ${next}`;
    transitions.set(name, (transitions.get(name) ?? 0) + 1);
    state = next;
  }
  check(isTerminal(state), `the log ends with a job that is ${state}`);
  check(record.state === state, `the record says ${record.state} and the log ${state}`);
  check(record.lastSeq === events.length, `the record counts ${record.lastSeq} events of ${events.length}`);
  check(record.endedAt !== null, 'an ended job has no time of its end');
  check((record.error !== null) === (state === 'failed'), `the record's error does not fit a job that has ${state}`);
  check(
    (record.result !== null) === (state === 'succeeded'),
    `the record's result does not fit a job that has ${state}`,
  );
}

const SLOTS = [0, 1] as const;
/** Most jobs get the same model, because jobs of one model wait for each other. */
const slot = fc.constantFrom(0, 0, 0, 1);
const kind = fc.constantFrom<Kind>('params', 'create', 'train', 'train', 'train', 'generate', 'generate');
const index = fc.nat(COMMANDS_MAX);
const action = fc.constantFrom(...ACTIONS);
const actions = fc.array(action, { minLength: 2, maxLength: 4 });
const signal = fc.constantFrom('SIGKILL' as const, 'SIGTERM' as const);
const state = fc.constantFrom(...JOB_STATES);

/** About twice `restarts` of a thousand commands end the daemon. */
function sequencesWith(restarts: number): fc.Arbitrary<Iterable<Command>> {
  const drawn: fc.Arbitrary<Command> = fc.oneof(
    { weight: 290, arbitrary: fc.tuple(kind, slot).map((args) => submit(...args)) },
    { weight: 400, arbitrary: fc.tuple(action, index).map((args) => act(...args)) },
    { weight: 150, arbitrary: fc.tuple(actions, index).map((args) => burst(...args, { kill: false })) },
    { weight: 80, arbitrary: state.map(list) },
    { weight: 80, arbitrary: slot.map(remove) },
    { weight: restarts, arbitrary: fc.tuple(actions, index).map((args) => burst(...args, { kill: true })) },
    { weight: restarts, arbitrary: signal.map(end) },
  );
  return fc.commands([drawn], { maxCommands: COMMANDS_MAX, size: 'max' });
}

/** Runs the sequences of one daemon. Resolves to the number that held, and to the failure of the one that did not. */
async function runSequences(
  home: DataHome,
  { count, restarts, seed, seen }: { count: number; restarts: number; seed: number; seen: Seen },
): Promise<{ held: number; failure: string | null }> {
  await home.start({ workers: 1 });
  await makeModel(home);
  const blob = await upload(home, TEXT);
  let sequences = 0;
  let client = await home.connect();
  const sequence = async (commands: Iterable<Command>): Promise<void> => {
    if (++sequences % SEQUENCES_PER_CONNECTION === 0) {
      client.close();
      client = await home.connect();
    }
    const model: Model = { jobs: [] };
    const real: Real = { home, client, prefix: `s${sequences}`, blob, seen };
    try {
      // Every sequence begins with the creation of a model, because without one there is nothing to train.
      await submit('create', 0).run(model, real);
      await fc.asyncModelRun(() => ({ model, real }), commands);
    } finally {
      client = real.client;
    }
    await judge(model, real);
    seen.commands += [...commands].length;
  };
  const property = fc.asyncProperty(sequencesWith(restarts), sequence);
  const { failed, numRuns, counterexample, errorInstance } = await fc.check(property, {
    numRuns: count,
    seed,
    // fast-check cannot look for a shorter sequence on a daemon that has failed.
    endOnFailure: true,
  });
  if (!failed) return { held: numRuns, failure: null };
  return {
    held: Math.max(0, numRuns - 1),
    failure: `${fc.stringify(counterexample)}: ${String(errorInstance)} (seed ${seed})`,
  };
}

async function randomCommands({ tries, random, tally, home: makeHome }: Context): Promise<Outcome> {
  const seen: Seen = { commands: 0, kills: 0, stops: 0, jobs: 0, transitions: new Map() };
  const daemons = tries < MANY ? 1 : 2;
  const restarts = tries < MANY ? 15 : 1;
  const shares = Array.from({ length: daemons }, (_, i) => Math.floor((tries + i) / daemons));
  const lanes = shares.map((count) => {
    return runSequences(makeHome(), { count, restarts, seed: random.integer(0, 2 ** 31 - 1), seen });
  });
  for (const { held, failure } of await Promise.all(lanes)) {
    tally.passed(held);
    if (failure !== null) tally.failed(failure);
  }
  const counts = [...seen.transitions].sort().map(([name, count]) => `${name} ${count}`);
  tally.note(`${seen.commands} commands, ${seen.jobs} jobs, ${seen.kills} kills, ${seen.stops} stops`);
  tally.note(`transitions: ${counts.join(', ')}`);
  return tally.outcome();
}

export const jobStateRows: readonly Row[] = [
  {
    name: 'R16',
    title: 'random sequences of commands never bring a job into a state that it may not have',
    tries: 10_000,
    short: 25,
    run: randomCommands,
  },
];
