// Giving back what nobody needs: old jobs, blobs that nothing refers to, and the free pages of the file. Each call does one small
// piece, so that whoever waits for the store waits for one piece at the most.

import type Database from 'better-sqlite3';
import { parseColumn, readTexts, unlessDamaged } from './rows.ts';

/** One call gives this many pages of 32 KiB back to the file system: 16 MiB. */
const PAGES_A_CALL = 512;
/** The free pages that stay for what is written next, as a fraction of the file. */
const FREE_SHARE_KEPT = 0.25;
/** How long a blob that no job has named yet is kept, and one that a job has made. */
const UNUSED_BLOB_MS = 24 * 3600 * 1000;

/** One call removes this many events at the most. */
const EVENTS_A_CALL = 2000;

/**
 * Removes ended jobs with their events, the oldest first, but for the `keepJobs` that ended last and for those that wrote a
 * checkpoint which is still there. Each call removes a part of them and returns whether there are more.
 */
export function jobCollector(db: Database.Database): (keepJobs: number) => boolean {
  const selectOldestKept = db
    .prepare<[number], number>(
      'SELECT end_number FROM jobs WHERE end_number IS NOT NULL ORDER BY end_number DESC LIMIT 1 OFFSET ? - 1',
    )
    .pluck();
  const selectOld = db
    .prepare<[number], string>(
      `SELECT job_id FROM jobs WHERE end_number < ?
         AND job_id NOT IN (SELECT job_id FROM checkpoints) ORDER BY end_number LIMIT 1`,
    )
    .pluck();
  const removeEvents = db.prepare<[{ jobId: string; limit: number }]>(
    `DELETE FROM events WHERE job_id = :jobId
       AND seq IN (SELECT seq FROM events WHERE job_id = :jobId ORDER BY seq LIMIT :limit)`,
  );
  const removeJob = db.prepare<[string]>('DELETE FROM jobs WHERE job_id = ?');

  const collect = db.transaction((keepJobs: number): boolean => {
    const oldestKept = selectOldestKept.get(keepJobs);
    if (oldestKept === undefined) return false;
    for (let left = EVENTS_A_CALL; left > 0;) {
      const jobId = selectOld.get(oldestKept);
      if (jobId === undefined) return false;
      const { changes } = removeEvents.run({ jobId, limit: left });
      // The row is removed when no event is left.
      if (changes < left) removeJob.run(jobId);
      left -= changes;
    }
    return true;
  });
  return (keepJobs) => collect.immediate(keepJobs);
}

/**
 * A job refers to the blobs whose digests its spec names, while it has not ended and for as long as its model exists; a dataset
 * and a model's file refer to theirs; a dataset is kept while a job refers to one of the files that it was made of. A spec that
 * is damaged names no model, and a dataset whose row is damaged is dropped.
 */
const NAMED_BY_LIVE_JOB = `EXISTS (SELECT 1 FROM jobs WHERE instr(jobs.spec, :digest) > 0
  AND (state NOT IN ('succeeded', 'failed', 'cancelled')
    OR CASE WHEN json_valid(jobs.spec) THEN
      EXISTS (SELECT 1 FROM models WHERE name = substr(jobs.spec ->> '$.model', 1, instr(jobs.spec ->> '$.model' || '@', '@') - 1))
    END))`;

/** Unlists the blobs and datasets that nothing refers to; returns whether there were any. Their chunks are purged afterwards. */
export function blobCollector(db: Database.Database): (now: number) => boolean {
  const isNeeded = db.prepare<[{ digest: string }], number>(`SELECT ${NAMED_BY_LIVE_JOB}`).pluck();
  const wasUsed = db
    .prepare<[{ digest: string }], number>('SELECT EXISTS (SELECT 1 FROM jobs WHERE instr(spec, :digest) > 0)')
    .pluck();
  const isResult = db
    .prepare<[{ digest: string }], number>('SELECT EXISTS (SELECT 1 FROM jobs WHERE instr(result, :digest) > 0)')
    .pluck();
  const selectDatasets = db.prepare<[], { key: string; sources: string; blob: string }>(
    'SELECT key, sources, lower(hex(blob)) AS blob FROM datasets',
  );
  const removeDataset = db.prepare<[string]>('DELETE FROM datasets WHERE key = ?');
  const selectFree = db.prepare<[], { blob_id: number; digest: string; created_at: number }>(
    `SELECT blob_id, lower(hex(hash)) AS digest, created_at FROM blobs WHERE hash IS NOT NULL
       AND NOT EXISTS (SELECT 1 FROM datasets WHERE datasets.blob = blobs.hash)
       AND NOT EXISTS (SELECT 1 FROM model_files WHERE model_files.blob = blobs.hash)`,
  );
  const unlist = db.prepare<[number]>('UPDATE blobs SET hash = NULL WHERE blob_id = ?');

  const collect = db.transaction((now: number): boolean => {
    const outdated = new Set<string>();
    for (const { key, sources, blob } of selectDatasets.all()) {
      const digests = unlessDamaged(() => parseColumn(sources, `sources of the dataset ${key}`, readTexts));
      if (digests?.some((digest) => isNeeded.get({ digest }) === 1)) continue;
      removeDataset.run(key);
      outdated.add(blob);
    }
    let found = false;
    for (const { blob_id, digest, created_at } of selectFree.all()) {
      if (now - created_at < UNUSED_BLOB_MS) {
        // An upload comes before the job that names it, and tokens come before their dataset: they may still be named.
        if (!outdated.has(digest) && wasUsed.get({ digest }) === 0) continue;
        // The client that ran the job may still fetch what the job made.
        if (isResult.get({ digest }) === 1) continue;
      }
      if (isNeeded.get({ digest }) === 1) continue;
      unlist.run(blob_id);
      found = true;
    }
    return found;
  });
  return (now) => collect.immediate(now);
}

/**
 * A clock that begins with the time of day and counts the time that really passes: setting the system's clock makes no blob old.
 */
export function steadyClock(): () => number {
  const offsetMs = Date.now() - performance.now();
  return () => Math.round(offsetMs + performance.now());
}

/** Gives some free pages back, unless they are few and not `all` are to go; returns whether more are left. */
export function pageReturner(db: Database.Database): (options: { readonly all: boolean }) => boolean {
  const pragma = (name: string): number => Number(db.pragma(name, { simple: true }));
  return ({ all }) => {
    const kept = (all ? 0 : FREE_SHARE_KEPT) * pragma('page_count');
    const free = pragma('freelist_count');
    if (free <= kept) return false;
    db.pragma(`incremental_vacuum(${PAGES_A_CALL})`);
    const left = pragma('freelist_count');
    // A file that was made without incremental vacuum keeps its free pages and uses them again.
    return left < free && left > kept;
  };
}
