// Holds: a job that works with a checkpoint keeps it until the job has ended, through restarts too, even when a training job has
// written enough newer ones to prune it. A checkpoint whose turn has come while it is held is no longer listed; it is dropped
// when the last hold is gone.

import type Database from 'better-sqlite3';

interface HoldTable {
  /** The checkpoint that the job holds. */
  of(jobId: string): number | undefined;
  add(jobId: string, checkpointId: number): void;
  /** Drops the checkpoint, now or when nobody holds it any more. The caller has begun a transaction. */
  prune(checkpointId: number): void;
  /** Forgets the holds on a checkpoint that is removed. The caller has begun a transaction. */
  forget(checkpointId: number): void;
  /** Ends the holds of jobs that have ended, and drops what only they kept. Returns whether something was dropped. */
  releaseEnded(): boolean;
}

export function holdTable(db: Database.Database): HoldTable {
  const select = db.prepare<[string], number>('SELECT checkpoint_id FROM holds WHERE job_id = ?').pluck();
  const insert = db.prepare<[string, number]>('INSERT INTO holds (job_id, checkpoint_id) VALUES (?, ?)');
  const isHeld = db.prepare<[number], number>('SELECT 1 FROM holds WHERE checkpoint_id = ? LIMIT 1').pluck();
  const postpone = db.prepare<[number]>('UPDATE checkpoints SET pruned = 1 WHERE checkpoint_id = ?');
  const drop = db.prepare<[number]>('UPDATE checkpoints SET model = NULL WHERE checkpoint_id = ?');
  const forget = db.prepare<[number]>('DELETE FROM holds WHERE checkpoint_id = ?');
  const removeEnded = db.prepare(
    `DELETE FROM holds WHERE NOT EXISTS
       (SELECT 1 FROM jobs WHERE jobs.job_id = holds.job_id AND state NOT IN ('succeeded', 'failed', 'cancelled'))`,
  );
  const dropReleased = db.prepare(
    `UPDATE checkpoints SET model = NULL WHERE pruned = 1 AND model IS NOT NULL
       AND NOT EXISTS (SELECT 1 FROM holds WHERE holds.checkpoint_id = checkpoints.checkpoint_id)`,
  );
  const releaseEnded = db.transaction(() => {
    removeEnded.run();
    return dropReleased.run().changes > 0;
  });
  return {
    of: (jobId) => select.get(jobId),
    add: (jobId, checkpointId) => void insert.run(jobId, checkpointId),
    prune: (checkpointId) => void (isHeld.get(checkpointId) === undefined ? drop : postpone).run(checkpointId),
    forget: (checkpointId) => void forget.run(checkpointId),
    releaseEnded: () => releaseEnded.immediate(),
  };
}
