// Finding the daemon: its address and its token, from flags, the environment or the data directory. It is read anew for
// every connection, because a daemon that was started again may listen on another port.

import { readFile } from 'node:fs/promises';
import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import { daemonFile, type DaemonFile } from '../../daemon/protocol/daemon.ts';
import type { CliContext } from '../context.ts';
import { CliError, EXIT, usageError } from '../exit-codes.ts';
import type { ConnectionFlags } from '../flags.ts';

/** Where a daemon listens. `url` is `http://host:port` without a trailing slash. */
export interface Address {
  readonly url: string;
  readonly token: string | undefined;
}

export function dataDirOf(flags: ConnectionFlags, context: CliContext): string {
  return resolve(flags.dataDir ?? nonEmpty(context.env['GPTD_HOME']) ?? join(homedir(), '.gptd'));
}

/** The token that was given, if any: the one in the data directory comes after these. */
export function givenToken(flags: ConnectionFlags, context: CliContext): string | undefined {
  return flags.token ?? nonEmpty(context.env['GPTD_TOKEN']);
}

/** Throws exit 69 when no address was given and no daemon has announced itself in the data directory. */
export async function locate(flags: ConnectionFlags, context: CliContext): Promise<Address> {
  const dataDir = dataDirOf(flags, context);
  const given = flags.url ?? nonEmpty(context.env['GPTD_URL']);
  const url = given === undefined ? (await announcedDaemon(dataDir)).url : checkUrl(given);
  const token = givenToken(flags, context) ?? (await readIfThere(join(dataDir, 'token')))?.trim();
  return { url: url.replace(/\/+$/, ''), token };
}

/** What the running daemon of a data directory wrote when it became ready. */
export async function announcedDaemon(dataDir: string): Promise<DaemonFile> {
  const announced = await readDaemonFile(dataDir);
  if (announced === undefined) {
    throw new CliError(EXIT.noDaemon, `No daemon answers for ${dataDir}: start one with "gptd start".`);
  }
  return announced;
}

/** undefined when the file is missing or half written. */
export async function readDaemonFile(dataDir: string): Promise<DaemonFile | undefined> {
  const text = await readIfThere(join(dataDir, 'daemon.json'));
  if (text === undefined) return undefined;
  try {
    return daemonFile.parse(JSON.parse(text));
  } catch {
    return undefined;
  }
}

export function noDaemonAt(url: string, cause?: unknown): CliError {
  return new CliError(EXIT.noDaemon, `No daemon answers at ${url}: start one with "gptd start".`, { cause });
}

/** What an HTTP status other than success means to the user. */
export function refusal(address: Address, status: number): CliError {
  if (status === 401) {
    const problem = address.token === undefined ? 'needs a token' : 'refused the token';
    return new CliError(
      EXIT.jobFailed,
      `The daemon at ${address.url} ${problem}: give the one in its data directory with --token or GPTD_TOKEN.`,
    );
  }
  if (status === 403) {
    return new CliError(
      EXIT.jobFailed,
      `The daemon at ${address.url} refused the Host of that address: use the one it is bound to.`,
    );
  }
  if (status === 503) return noDaemonAt(address.url);
  return new CliError(
    EXIT.jobFailed,
    `The daemon at ${address.url} refused the connection with HTTP status ${status}.`,
  );
}

function checkUrl(text: string): string {
  if (!/^https?:\/\//.test(text) || !URL.canParse(text)) {
    throw usageError(`The daemon's URL is "${text}": it must look like http://127.0.0.1:7433.`);
  }
  return text;
}

async function readIfThere(file: string): Promise<string | undefined> {
  try {
    return await readFile(file, 'utf8');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return undefined;
    throw error;
  }
}

const nonEmpty = (text: string | undefined): string | undefined => (text === '' ? undefined : text);
