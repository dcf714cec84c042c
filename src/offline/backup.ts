// A backup is a copy of a data directory's database, made while the daemon runs by `VACUUM INTO` over a connection that only
// reads. It is one moment of the database, without its free pages. The daemon writes on meanwhile, into a write-ahead log that
// grows until the copy is done. The file gets its name when it is whole, checked and on the disk, and never takes the place of
// another file.

import { closeSync, existsSync, linkSync, openSync, rmSync, statSync } from 'node:fs';
import path from 'node:path';
import Database from 'better-sqlite3';
import { GptdError } from '../model/errors.ts';
import { databasePath, DAMAGED_ADVICE, distrustFile, isDamage, syncPath } from '../workers/store/schema.ts';

export interface Backup {
  /** The absolute path of the copy. */
  readonly file: string;
  readonly bytes: number;
  readonly models: number;
  readonly jobs: number;
}

/**
 * Copies the database of `dataDir` to `file`. Throws `not_found` without a database, `conflict` when `file` exists, and `corrupt`
 * when what was copied is damaged.
 */
export function backUp(dataDir: string, file: string): Backup {
  const target = path.resolve(file);
  const source = databasePath(dataDir);
  if (!existsSync(source)) throw new GptdError('not_found', `There is no database in ${dataDir}: nothing to back up.`);
  if (existsSync(target)) throw new GptdError('conflict', `${target} exists: name a file that does not.`);
  const partial = `${target}.${process.pid}.partial`;
  try {
    // Jobs hold prompts, so only its owner may read the file. SQLite takes an empty file with the mode that it has.
    closeSync(openSync(partial, 'wx', 0o600));
    copy(source, partial);
    const counts = check(partial);
    syncPath(partial);
    // Unlike renaming, this fails when another process has taken the name meanwhile.
    linkSync(partial, target);
    rmSync(partial);
    syncPath(path.dirname(target));
    return { file: target, bytes: statSync(target).size, ...counts };
  } finally {
    rmSync(partial, { force: true });
  }
}

function copy(source: string, target: string): void {
  const db = new Database(source, { readonly: true });
  try {
    distrustFile(db);
    db.prepare('VACUUM INTO ?').run(target);
  } catch (error) {
    if (!isDamage(error)) throw error;
    throw new GptdError('corrupt', `${source} is damaged. ${DAMAGED_ADVICE}`, { cause: error });
  } finally {
    db.close();
  }
}

function check(file: string): Pick<Backup, 'models' | 'jobs'> {
  const db = new Database(file, { readonly: true });
  try {
    const found = String(db.pragma('integrity_check', { simple: true }));
    if (found !== 'ok') throw new GptdError('corrupt', `The copy is damaged: ${found}.`);
    const count = (table: string): number => db.prepare<[], number>(`SELECT count(*) FROM ${table}`).pluck().get() ?? 0;
    return { models: count('models'), jobs: count('jobs') };
  } finally {
    db.close();
  }
}
