// Jobs and their events. A job's events are numbered from 1 without gaps, an event with a key is stored once, and nothing
// follows the event that ended the job. State and event change in one transaction, so that neither is ever seen alone.

import { isDeepStrictEqual } from 'node:util';
import type Database from 'better-sqlite3';
import { assert, GptdError } from '../../model/errors.ts';
import type { NewEvent, StoredEvent, StoredJob, StoredJobState } from './messages.ts';
import { metricsWriter } from './metrics.ts';
import { anyValue, damagedColumn, parseColumn, readError } from './rows.ts';
import type { Calls } from './schema.ts';

const byName = (states: readonly StoredJobState[]): ReadonlyMap<string, StoredJobState> =>
  new Map(states.map((state) => [state, state]));

/** States that nothing follows; the event that ends a job has the name of its state. */
const ENDED = byName(['succeeded', 'failed', 'cancelled']);
const STATES = byName(['queued', 'running', 'paused', ...ENDED.values()]);

interface JobRow {
  readonly job_number: number;
  readonly job_id: string;
  readonly kind: string;
  readonly spec: string;
  readonly state: string;
  readonly priority: number;
  readonly created_at: number;
  readonly started_at: number | null;
  readonly ended_at: number | null;
  /** Jobs that have ended are numbered in the order of their ends. */
  readonly end_number: number | null;
  readonly last_seq: number;
  readonly result: string | null;
  readonly error: string | null;
}

interface EventRow {
  readonly seq: number;
  readonly at: number;
  readonly type: string;
  readonly data: string;
}

/** `null` stands for what JSON cannot say, so that a column never holds the text "undefined". */
const toJson = (value: unknown): string => JSON.stringify(value ?? null);

function jobOf(row: JobRow): StoredJob {
  const { spec, state, result, error } = contentOf(row);
  return {
    jobId: row.job_id,
    kind: row.kind,
    state,
    spec,
    priority: row.priority,
    createdAt: row.created_at,
    startedAt: row.started_at,
    endedAt: row.ended_at,
    lastSeq: row.last_seq,
    result,
    error,
  };
}

/** A damaged row gives a record as well, with an error that says so: it must not hide the jobs that are read with it. */
function contentOf(row: JobRow): Pick<StoredJob, 'state' | 'spec' | 'result' | 'error'> {
  const state = STATES.get(row.state);
  try {
    if (state === undefined) throw damagedColumn(columnOf(row, 'state'), new Error(`it is "${row.state}"`));
    return {
      state,
      spec: specOf(row),
      result: row.result === null ? null : parseColumn(row.result, columnOf(row, 'result'), anyValue),
      error: row.error === null ? null : parseColumn(row.error, columnOf(row, 'error'), readError),
    };
  } catch (error) {
    if (!(error instanceof GptdError)) throw error;
    const { code, message } = error;
    return { state: state ?? 'failed', spec: null, result: null, error: { code, message } };
  }
}

const columnOf = ({ job_id }: JobRow, name: string): string => `${name} of the job ${job_id}`;

const specOf = (row: JobRow): unknown => parseColumn(row.spec, columnOf(row, 'spec'), anyValue);

/** The data of an event, for its consumer to parse. Events are read by the thousand: one that is whole costs nothing more. */
function dataOf({ seq, data }: EventRow, jobId: string): unknown {
  try {
    return JSON.parse(data);
  } catch (error) {
    throw damagedColumn(`event ${seq} of the job ${jobId}`, error as SyntaxError);
  }
}

const unknownJob = (jobId: string): GptdError => new GptdError('not_found', `There is no job ${jobId}.`);

/** The store's calls about jobs and events over an open database. */
export function jobCalls(
  db: Database.Database,
): Calls<'submitJob' | 'appendEvents' | 'readEvents' | 'getJob' | 'findJob' | 'listJobs' | 'recoverJobs'> {
  const selectJob = db.prepare<[string], JobRow>('SELECT * FROM jobs WHERE job_id = ?');
  const selectByKey = db.prepare<[string], JobRow>('SELECT * FROM jobs WHERE key = ?');
  const countQueued = db.prepare<[], number>(`SELECT count(*) FROM jobs WHERE state = 'queued'`).pluck();
  const insertJob = db.prepare<[string, string | null, string, string, number, number]>(
    `INSERT INTO jobs (job_id, key, kind, spec, priority, state, created_at, last_seq)
     VALUES (?, ?, ?, ?, ?, 'queued', ?, 1)`,
  );
  const insertEvent = db.prepare<[string, number, number, string, string | null, string]>(
    'INSERT INTO events (job_id, seq, at, type, key, data) VALUES (?, ?, ?, ?, ?, ?)',
  );
  const hasKey = db.prepare<[string, string], number>('SELECT 1 FROM events WHERE job_id = ? AND key = ?').pluck();
  const updateJob = db.prepare<
    [{ [K in keyof Omit<JobRow, 'job_number' | 'kind' | 'spec' | 'priority' | 'created_at'>]: JobRow[K] }]
  >(
    `UPDATE jobs SET state = :state, started_at = :started_at, ended_at = :ended_at, end_number = :end_number, last_seq = :last_seq,
       result = :result, error = :error WHERE job_id = :job_id`,
  );
  // Most events change only this number: the statement above would write the indexes over its columns each time.
  const updateLastSeq = db.prepare<[number, string]>('UPDATE jobs SET last_seq = ? WHERE job_id = ?');
  const nextEndNumber = db.prepare<[], number>('SELECT coalesce(max(end_number), 0) + 1 FROM jobs').pluck();
  const storeMetrics = metricsWriter(db);
  const selectEvents = db.prepare<[{ jobId: string; after: number; limit: number; type: string | null }], EventRow>(
    `SELECT seq, at, type, data FROM events
     WHERE job_id = :jobId AND seq > :after AND (:type IS NULL OR type = :type) ORDER BY seq LIMIT :limit`,
  );
  const selectJobs = db.prepare<[{ state: string | null; kind: string | null; all: number; before: number }], JobRow>(
    `SELECT * FROM jobs
     WHERE job_number < :before AND (:state IS NULL OR state = :state) AND (:kind IS NULL OR kind = :kind)
       AND (:all OR state NOT IN ('succeeded', 'failed', 'cancelled'))
     ORDER BY job_number DESC`,
  );
  const requeue = db.prepare(`UPDATE jobs SET state = 'queued' WHERE state = 'running'`);
  const selectLive = db.prepare<[], JobRow>(
    `SELECT * FROM jobs WHERE state IN ('queued', 'running', 'paused') ORDER BY job_number`,
  );

  function requireJob(jobId: string): JobRow {
    const row = selectJob.get(jobId);
    if (row === undefined) throw unknownJob(jobId);
    return row;
  }

  /** The job's row after `item`, and the event; null when the event is dropped. */
  function append(
    row: JobRow,
    { item, at }: { readonly item: NewEvent; readonly at: number },
  ): [JobRow, StoredEvent] | null {
    if (ENDED.has(row.state)) return null;
    const key = item.key ?? null;
    if (key !== null && hasKey.get(row.job_id, key) !== undefined) return null;
    const state = item.state ?? ENDED.get(item.type) ?? row.state;
    assert(ENDED.has(state) === ENDED.has(item.type), `an event of type ${item.type} cannot make a job ${state}`);
    const event: StoredEvent = {
      jobId: row.job_id,
      seq: row.last_seq + 1,
      at,
      type: item.type,
      data: item.data ?? null,
    };
    insertEvent.run(event.jobId, event.seq, at, event.type, key, toJson(event.data));
    if (item.type === 'step' || item.type === 'eval') storeMetrics(event);
    const data = (item.data ?? {}) as { readonly result?: unknown; readonly error?: unknown };
    const next: JobRow = {
      ...row,
      state,
      last_seq: event.seq,
      // A job that was interrupted and started again keeps its first start.
      started_at: item.type === 'started' ? (row.started_at ?? at) : row.started_at,
      ended_at: ENDED.has(state) ? at : null,
      result: item.type === 'succeeded' ? toJson(data.result) : null,
      error: item.type === 'failed' ? toJson(data.error) : null,
    };
    return [next, event];
  }

  const submitJob = db.transaction((input: Parameters<Calls<'submitJob'>['submitJob']>[0]) => {
    const { jobId, kind, key, priority, queueLimit } = input;
    const spec = toJson(input.spec);
    const existing = key === undefined ? undefined : selectByKey.get(key);
    if (existing !== undefined) {
      if (existing.kind !== kind || !isDeepStrictEqual(specOf(existing), JSON.parse(spec))) {
        throw new GptdError(
          'conflict',
          `The key "${key}" belongs to the ${existing.kind} job ${existing.job_id}, whose spec differs: use another key.`,
        );
      }
      return { job: jobOf(existing), created: false, event: null };
    }
    const queuedCount = countQueued.get() ?? 0;
    if (queuedCount >= queueLimit) {
      throw new GptdError(
        'queue_full',
        `The queue holds ${queuedCount} jobs and takes at most ${queueLimit}: submit again later.`,
      );
    }
    const at = Date.now();
    insertJob.run(jobId, key ?? null, kind, spec, priority, at);
    const event: StoredEvent = { jobId, seq: 1, at, type: 'queued', data: { kind } };
    insertEvent.run(jobId, 1, at, event.type, null, toJson(event.data));
    return { job: jobOf(requireJob(jobId)), created: true, event };
  });

  const appendEvents = db.transaction((items: readonly NewEvent[]): (StoredEvent | null)[] => {
    const at = Date.now();
    const rows = new Map<string, JobRow>();
    /** The rows of jobs with new events, as they were before these events. */
    const changed = new Map<string, JobRow>();
    const events = items.map((item) => {
      const row = rows.get(item.jobId) ?? requireJob(item.jobId);
      const [next, event] = append(row, { item, at }) ?? [row, null];
      rows.set(item.jobId, next);
      if (event !== null && !changed.has(item.jobId)) changed.set(item.jobId, row);
      return event;
    });
    for (const [jobId, before] of changed) {
      const { job_id, state, started_at, ended_at, last_seq, result, error } = rows.get(jobId)!;
      if (state === before.state && started_at === before.started_at) {
        updateLastSeq.run(last_seq, job_id);
        continue;
      }
      const end_number = ENDED.has(state) ? nextEndNumber.get()! : null;
      updateJob.run({ job_id, state, started_at, ended_at, end_number, last_seq, result, error });
    }
    return events;
  });

  const recoverJobs = db.transaction(() => {
    const jobs = selectLive.all().map(jobOf);
    requeue.run();
    // A job that has not ended has no error of its own.
    const isWhole = ({ error }: StoredJob): boolean => error === null;
    appendEvents(
      jobs
        .filter((job) => !isWhole(job))
        .map(({ jobId, error }) => ({ jobId, type: 'failed', data: { error }, key: 'end' })),
    );
    return { jobs: jobs.filter(isWhole) };
  });

  return {
    submitJob: (input) => submitJob.immediate(input),
    appendEvents: ({ items }) => ({ events: appendEvents.immediate(items) }),
    readEvents: ({ jobId, after, limit, eventType }) => {
      const lastSeq = requireJob(jobId).last_seq;
      const rows = selectEvents.all({ jobId, after, limit, type: eventType ?? null });
      // An old job is removed event by event, the first one first, and its row last: a gap here means that it is being removed.
      if (eventType === undefined && rows.length > 0 && rows[0].seq !== after + 1) throw unknownJob(jobId);
      // The fields have the order that they have in `append`: an event is the same JSON whether it is heard live or read again.
      const events = rows.map((row) => ({ jobId, seq: row.seq, at: row.at, type: row.type, data: dataOf(row, jobId) }));
      return { events, lastSeq };
    },
    getJob: ({ jobId }) => jobOf(requireJob(jobId)),
    findJob: ({ key }) => {
      const row = selectByKey.get(key);
      return { job: row === undefined ? null : jobOf(row) };
    },
    listJobs: ({ state, kind, all, limit, before, bytesMax }) => {
      const jobs: StoredJob[] = [];
      let bytes = 0;
      const rows = selectJobs.iterate({
        state: state ?? null,
        kind: kind ?? null,
        // Whoever names a state wants its jobs, also when they have ended.
        all: all || state !== undefined ? 1 : 0,
        before: before === undefined ? Number.MAX_SAFE_INTEGER : requireJob(before).job_number,
      });
      for (const row of rows) {
        bytes += Buffer.byteLength(row.spec) + Buffer.byteLength(row.result ?? '');
        if (jobs.length === limit || (jobs.length > 0 && bytes > bytesMax)) return { jobs, hasMore: true };
        jobs.push(jobOf(row));
      }
      return { jobs, hasMore: false };
    },
    recoverJobs: () => recoverJobs.immediate(),
  };
}
