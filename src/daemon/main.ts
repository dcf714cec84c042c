// This is the way into the daemon, for the CLI and for programs that start it without the CLI. A daemon that cannot run is
// refused before its modules are loaded, which takes longer than anything else in a start.

import { mkdirSync } from 'node:fs';
import { GptdError } from '../model/errors.ts';
import { lockDirectory } from '../workers/store/lock.ts';
import { checkAccess } from './edge/access.ts';
import type { DaemonEnd, DaemonOptions } from './options.ts';

/**
 * Runs a daemon until it is told to stop. Throws a `GptdError` when it cannot start: `conflict` when the data directory is in use,
 * `unauthorized` when it would be open to others, `invalid_spec` when an option is wrong.
 */
export async function runDaemon(options: DaemonOptions): Promise<DaemonEnd> {
  const { dataDir } = options;
  mkdirSync(dataDir, { recursive: true, mode: 0o700 });
  checkAccess(options);
  refuseInUse(dataDir);
  const { run } = await import('./composition.ts');
  return run(options);
}

/**
 * Throws `conflict` while another daemon has the directory. The store takes the lock later and keeps it, and reports any other
 * fault.
 */
function refuseInUse(dataDir: string): void {
  try {
    lockDirectory(dataDir).release();
  } catch (error) {
    if (error instanceof GptdError) throw error;
  }
}
