// Writes a data directory as the first version of the schema left it, with a training job, its curve, and chunks.

import { mkdirSync } from 'node:fs';
import Database from 'better-sqlite3';
import { MIGRATIONS } from '../../../src/workers/store/migrations.ts';
import { databasePath } from '../../../src/workers/store/schema.ts';

export function writeFirstVersion(
  dataDir: string,
  { state = 'queued', chunkCount = 64 }: { readonly state?: 'queued' | 'paused'; readonly chunkCount?: number } = {},
): void {
  mkdirSync(dataDir, { recursive: true });
  const db = new Database(databasePath(dataDir));
  db.pragma('page_size = 32768');
  db.pragma('journal_mode = WAL');
  db.exec(MIGRATIONS[0]);
  db.pragma('user_version = 1');
  db.exec(`
    INSERT INTO jobs (job_id, key, kind, spec, state, created_at, last_seq)
      VALUES ('old', 'k', 'train', '{"model":"tiny"}', '${state}', 5, 3);
    INSERT INTO events VALUES ('old', 1, 5, 'queued', NULL, '{"kind":"train"}'), ('old', 2, 6, 'step', NULL, '{"step":1}'),
      ('old', 3, 7, 'step', NULL, '{"step":2}');
    INSERT INTO metrics VALUES ('old', 1, 6, 3.5, 0.1, 1, 64, 10), ('old', 2, 7, 3.25, 0.1, 1, 128, 10);
    WITH RECURSIVE n (i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ${chunkCount})
      INSERT INTO chunks SELECT randomblob(32), randomblob(262144) FROM n;`);
  db.close();
}

/** Returns the version of the schema that a database names. Throws when the database is not whole. */
export function schemaOf(file: string): number {
  const db = new Database(file, { readonly: true });
  try {
    const found = db.pragma('integrity_check', { simple: true });
    if (found !== 'ok') throw new Error(`${file} is damaged: ${String(found)}`);
    return Number(db.pragma('user_version', { simple: true }));
  } finally {
    db.close();
  }
}
