// What a daemon leaves in its data directory for clients on the same machine: where it listens, and its token. Both are read
// again for every connection, because a daemon that was started again may listen on another port.

import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { daemonFile, type DaemonFile } from '../../daemon/protocol/daemon.ts';
import { ClientFault } from './faults.ts';

/** Resolves to what the daemon of a data directory wrote when it became ready. Throws `no_daemon` when there is no such file. */
export async function announcedDaemon(dataDir: string): Promise<DaemonFile> {
  const announced = await readDaemonFile(dataDir);
  if (announced === undefined) {
    throw new ClientFault('no_daemon', `No daemon answers for ${dataDir}: start one with "gptd start".`);
  }
  return announced;
}

/** Resolves to the contents of the daemon's file, or to undefined when it is missing or half written. */
export async function readDaemonFile(dataDir: string): Promise<DaemonFile | undefined> {
  const text = await readIfThere(join(dataDir, 'daemon.json'));
  if (text === undefined) return undefined;
  try {
    return daemonFile.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
}

export const readToken = async (dataDir: string): Promise<string | undefined> =>
  (await readIfThere(join(dataDir, 'token')))?.trim();

async function readIfThere(file: string): Promise<string | undefined> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}
