// `gptd start`: the daemon in the foreground, in this very process, so that ending the command ends the daemon. It is the
// one place where the CLI loads the daemon's code, and it does so only when asked to. --detach is in detached-start.ts.

import type { Command } from 'commander';
import { dataDirOf, givenToken } from '../client/address.ts';
import type { CliContext } from '../context.ts';
import { startDetached } from '../detached-start.ts';
import { addConnectionFlags } from '../flags.ts';
import { addStartFlags, announceReady, type StartFlags } from '../start-flags.ts';

export function addStartCommand(program: Command, context: CliContext): void {
  const command = program.command('start').description('run the daemon until it is stopped');
  addConnectionFlags(addStartFlags(command)).action(async (flags: StartFlags) => {
    context.exitCode = flags.detach === true ? await startDetached(flags, context) : await startHere(flags, context);
  });
}

async function startHere(flags: StartFlags, context: CliContext): Promise<number> {
  const { runDaemon } = await import('../../daemon/main.ts');
  context.survivesBrokenPipe = true;
  return runDaemon({
    dataDir: dataDirOf(flags, context),
    host: flags.host,
    port: flags.port,
    workers: flags.workers,
    engine: flags.engine,
    allowOrigins: flags.allowOrigin ?? [],
    queueLimit: flags.queueLimit,
    keepJobs: flags.keepJobs,
    logLevel: flags.logLevel,
    token: givenToken(flags, context),
    onReady: (ready) => announceReady(ready, { json: flags.json === true, context }),
  });
}
