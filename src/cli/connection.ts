// How a command reaches its daemon: flags, environment and data directory say where the daemon is, and a session is open for as
// long as the command has something to ask.

import { homedir } from 'node:os';
import { join, resolve } from 'node:path';
import type { Address } from './client/address.ts';
import { connect } from './client/connect.ts';
import { announcedDaemon, readToken } from './client/data-directory.ts';
import { openSession, type Session } from './client/session.ts';
import type { CliContext } from './context.ts';
import { usageError } from './exit-codes.ts';
import type { ConnectionFlags } from './flags.ts';
import { ProgressLine } from './render/progress-line.ts';

/** What a command gets for its requests: an open session, and a progress line to show how far it is. */
export interface SessionUse {
  readonly session: Session;
  readonly progress: ProgressLine;
}

/** Opens a session for `use` and closes it afterwards. */
export async function withSession<T>(
  { flags, context }: { readonly flags: ConnectionFlags; readonly context: CliContext },
  use: (opened: SessionUse) => Promise<T>,
): Promise<T> {
  const progress = new ProgressLine(context.stderr);
  const session = await openSession({
    connect: async () => connect(await locate(flags, context)),
    notify: (sentence) => progress.print(sentence),
  });
  try {
    return await use({ session, progress });
  } finally {
    progress.close();
    session.close();
  }
}

export function dataDirOf(flags: ConnectionFlags, context: CliContext): string {
  return resolve(flags.dataDir ?? nonEmpty(context.env['GPTD_HOME']) ?? join(homedir(), '.gptd'));
}

/** Returns the token of the flags or the environment, if any. Without it, `locate` reads the token in the data directory. */
export function givenToken(flags: ConnectionFlags, context: CliContext): string | undefined {
  return flags.token ?? nonEmpty(context.env['GPTD_TOKEN']);
}

/** Finds the daemon. Throws `no_daemon` when no address was given and no daemon has announced itself in the data directory. */
async function locate(flags: ConnectionFlags, context: CliContext): Promise<Address> {
  const dataDir = dataDirOf(flags, context);
  const given = flags.url ?? nonEmpty(context.env['GPTD_URL']);
  const url = given === undefined ? (await announcedDaemon(dataDir)).url : checkUrl(given);
  const token = givenToken(flags, context) ?? (await readToken(dataDir));
  return { url: url.replace(/\/+$/, ''), token };
}

function checkUrl(text: string): string {
  if (!/^https?:\/\//.test(text) || !URL.canParse(text)) {
    throw usageError(`The daemon's URL is "${text}": it must look like http://127.0.0.1:7433.`);
  }
  return text;
}

const nonEmpty = (text: string | undefined): string | undefined => (text === '' ? undefined : text);
