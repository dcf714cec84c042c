// `gptd start`: runs the daemon in the foreground, in this very process, so that ending the command ends the daemon. The daemon's
// code is loaded only when the command runs. --detach is in detached-start.ts.

import type { Command } from 'commander';
import { GptdError, type ErrorCode } from '../../../daemon/protocol/errors.ts';
import { dataDirOf, givenToken } from '../../connection.ts';
import type { CliContext } from '../../context.ts';
import { EXIT } from '../../exit-codes.ts';
import { addConnectionFlags } from '../../flags.ts';
import { startDetached } from './detached-start.ts';
import { addStartFlags, announceReady, defaultWorkers, type StartFlags } from './start-flags.ts';

/** The exit codes of the reasons for which a daemon refuses to start. All other reasons exit with EXIT.jobFailed. */
const REFUSAL_EXITS: Partial<Readonly<Record<ErrorCode, number>>> = {
  conflict: EXIT.dataDirInUse,
  unauthorized: EXIT.unsafeConfiguration,
  invalid_spec: EXIT.usage,
};

export function addStartCommand(program: Command, context: CliContext): void {
  const command = program.command('start').description('run the daemon until it is stopped');
  addConnectionFlags(addStartFlags(command)).action(async (flags: StartFlags) => {
    context.exitCode = flags.detach === true ? await startDetached(flags, context) : await startHere(flags, context);
  });
}

async function startHere(flags: StartFlags, context: CliContext): Promise<number> {
  const { runDaemon } = await import('../../../daemon/main.ts');
  context.survivesBrokenPipe = true;
  try {
    const end = await runDaemon({
      dataDir: dataDirOf(flags, context),
      host: flags.host,
      port: flags.port,
      workers: flags.workers ?? defaultWorkers(),
      engine: flags.engine,
      allowOrigins: flags.allowOrigin ?? [],
      queueLimit: flags.queueLimit,
      keepJobs: flags.keepJobs,
      logLevel: flags.logLevel,
      token: givenToken(flags, context),
      onReady: (ready) => announceReady(ready, { json: flags.json === true, context }),
    });
    return end === 'stopped' ? EXIT.ok : EXIT.jobFailed;
  } catch (error) {
    if (!(error instanceof GptdError)) throw error;
    // SQLite's message about a damaged database may have several lines, and all of them are printed.
    context.stderr.write(`gptd: ${error.message}\n`);
    return REFUSAL_EXITS[error.code] ?? EXIT.jobFailed;
  }
}
