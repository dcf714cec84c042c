// The numbers of every training step and evaluation, kept beside the event log so that a model's curve outlives its jobs. A
// model's history is what led to it: where a later job began again at an earlier step, it replaces what came after that step.

import type Database from 'better-sqlite3';
import { assert } from '../../model/errors.ts';
import type { MetricsPoint, StoredEvent } from './messages.ts';
import type { Calls } from './schema.ts';

const COLUMNS = `job_id AS jobId, step, at, loss, lr, grad_norm AS gradNorm, tokens, tokens_per_second AS tokensPerSecond,
  train_loss AS trainLoss, val_loss AS valLoss`;

/** Stores what a `step` or `eval` event of a training job says, within the transaction that appends the event. */
export function metricsWriter(db: Database.Database): (event: StoredEvent) => void {
  const model = `(SELECT spec ->> '$.model' FROM jobs WHERE job_id = :jobId)`;
  const upsert = (columns: readonly string[]): Database.Statement<[Record<string, unknown>]> =>
    db.prepare(
      `INSERT INTO metrics (model, job_id, step, at, ${columns.join(', ')})
       VALUES (coalesce(substr(${model}, 1, instr(${model} || '@', '@') - 1), ''), :jobId, :step, :at,
         ${columns.map((column) => `:${column}`).join(', ')})
       ON CONFLICT (job_id, step) DO UPDATE SET ${columns.map((column) => `${column} = excluded.${column}`).join(', ')}`,
    );
  const steps = upsert(['loss', 'lr', 'grad_norm', 'tokens', 'tokens_per_second']);
  const evaluations = upsert(['train_loss', 'val_loss']);
  return ({ type, data, jobId, at }) => {
    const values = (data ?? {}) as Readonly<Record<string, unknown>>;
    const number = (name: string): number | null => (typeof values[name] === 'number' ? values[name] : null);
    const step = number('step');
    assert(step !== null, `a ${type} event of job ${jobId} has no step`);
    if (type === 'eval') {
      evaluations.run({ jobId, step, at, train_loss: number('trainLoss'), val_loss: number('valLoss') });
      return;
    }
    const [loss, lr, tokens] = [number('loss'), number('lr'), number('tokens')];
    const [grad_norm, tokens_per_second] = [number('gradNorm'), number('tokensPerSecond')];
    steps.run({ jobId, step, at, loss, lr, grad_norm, tokens, tokens_per_second });
  };
}

/** A job's part of its model's history: its steps up to `last`. */
interface Run {
  readonly jobId: string;
  readonly last: number;
}

export function metricsCalls(db: Database.Database): Calls<'readHistory'> {
  const selectRuns = db.prepare<[string], { jobId: string; first: number }>(
    `SELECT job_id AS jobId, min(step) AS first FROM metrics WHERE model = ? AND loss IS NOT NULL
     GROUP BY job_id ORDER BY min(at), job_id`,
  );
  const selectPoints = db.prepare<[{ jobId: string; after: number; last: number; limit: number }], MetricsPoint>(
    `SELECT ${COLUMNS} FROM metrics WHERE job_id = :jobId AND step > :after AND step <= :last ORDER BY step LIMIT :limit`,
  );

  function runsOf(model: string): Run[] {
    let last = Number.MAX_SAFE_INTEGER;
    const runs = selectRuns.all(model).reverse();
    return runs
      .map(({ jobId, first }) => {
        const run = { jobId, last };
        last = Math.min(last, first - 1);
        return run;
      })
      .reverse();
  }

  return {
    readHistory: ({ model, after, limit }) => {
      const points: MetricsPoint[] = [];
      const runs = runsOf(model);
      const begin = after === null ? 0 : runs.findIndex(({ jobId }) => jobId === after.jobId);
      for (const { jobId, last } of begin < 0 ? [] : runs.slice(begin)) {
        const from = jobId === after?.jobId ? after.step : -1;
        points.push(...selectPoints.all({ jobId, after: from, last, limit: limit - points.length }));
        if (points.length === limit) break;
      }
      const end = points.at(-1);
      const next = end === undefined || points.length < limit ? null : { jobId: end.jobId, step: end.step };
      return { points, next };
    },
  };
}
