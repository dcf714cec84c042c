// One daemon per data directory. The lock is an exclusive transaction on a SQLite file of its own, held for the life of the
// process: the kernel releases it however the process ends, so there is no stale lock to detect and no pid to trust.

import { mkdirSync } from 'node:fs';
import path from 'node:path';
import Database from 'better-sqlite3';
import { GptdError } from '../../model/errors.ts';

interface DirectoryLock {
  /** May be called twice. */
  release(): void;
}

/** Takes the lock of `dataDir`, which is created when absent. Throws `conflict` at once when another daemon has it. */
export function lockDirectory(dataDir: string): DirectoryLock {
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  const db = new Database(path.join(dataDir, 'gptd.lock'), { timeout: 0 });
  try {
    db.exec('BEGIN EXCLUSIVE');
  } catch (error) {
    db.close();
    if (error instanceof Database.SqliteError && error.code.startsWith('SQLITE_BUSY')) {
      const message = `The data directory ${dataDir} is in use by another daemon: stop it or use another directory.`;
      throw new GptdError('conflict', message, { cause: error });
    }
    throw error;
  }
  return { release: () => db.close() };
}
