// `gptd stop`: stops the daemon of the data directory. It signals a process, so it takes no pid on trust: the daemon that answers
// must be the daemon that announced itself in the data directory.

import { setTimeout as delay } from 'node:timers/promises';
import type { Command } from 'commander';
import { announcedDaemon } from '../../client/data-directory.ts';
import { isRunning } from '../../client/health.ts';
import { dataDirOf, withSession } from '../../connection.ts';
import { printJson, printText, type CliContext } from '../../context.ts';
import { CliError, EXIT } from '../../exit-codes.ts';
import { addConnectionFlags, type ConnectionFlags } from '../../flags.ts';

const POLL_MS = 50;
/** The command waits for so long in silence. Then it says what it waits for. */
const PATIENCE_MS = 2_000;
const STOP_MS_MAX = 120_000;

export function addStopCommand(program: Command, context: CliContext): void {
  addConnectionFlags(program.command('stop').description('stop the daemon of the data directory')).action(
    async (flags: ConnectionFlags) => {
      context.exitCode = await stop(flags, context);
    },
  );
}

async function stop(flags: ConnectionFlags, context: CliContext): Promise<number> {
  const announced = await announcedDaemon(dataDirOf(flags, context));
  const { pid } = await withSession({ flags: { url: announced.url, ...flags }, context }, ({ session }) =>
    session.request('daemon.status', {}),
  );
  if (pid !== announced.pid) {
    throw new CliError(
      EXIT.noDaemon,
      `The daemon that answers has pid ${pid}, but the data directory announced pid ${announced.pid}: give the --data-dir of the daemon to stop.`,
    );
  }
  process.kill(pid, 'SIGTERM');
  await untilGone(pid, context);
  if (flags.json === true) printJson(context, { pid, stopped: true });
  else printText(context, 'stopped');
  return EXIT.ok;
}

async function untilGone(pid: number, context: CliContext): Promise<void> {
  const startMs = performance.now();
  let isTold = false;
  while (await isRunning(pid)) {
    const waitedMs = performance.now() - startMs;
    if (waitedMs > STOP_MS_MAX) {
      throw new CliError(
        EXIT.jobFailed,
        `The daemon (pid ${pid}) was told to stop and still runs after ${STOP_MS_MAX / 1000} s.`,
      );
    }
    if (waitedMs > PATIENCE_MS && !isTold) {
      context.stderr.write(`waiting for the daemon (pid ${pid}) to save its work\n`);
      isTold = true;
    }
    await delay(POLL_MS);
  }
}
