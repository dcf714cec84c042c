// `gptd cancel`, `gptd pause` and `gptd resume`: three commands that differ only in the method that they call.

import type { Command } from 'commander';
import { withSession } from '../../connection.ts';
import { printJson, printText, type CliContext } from '../../context.ts';
import { EXIT } from '../../exit-codes.ts';
import { addConnectionFlags, checkParams, type ConnectionFlags } from '../../flags.ts';

const JOB_ACTIONS = [
  ['cancel', 'job.cancel', 'cancel a job'],
  ['pause', 'job.pause', 'pause a job at its next checkpoint'],
  ['resume', 'job.resume', 'continue a paused job'],
] as const;

export function addControlCommands(program: Command, context: CliContext): void {
  for (const [name, method, description] of JOB_ACTIONS) {
    addConnectionFlags(program.command(name).argument('<job>', 'job id').description(description)).action(
      async (jobId: string, flags: ConnectionFlags) => {
        checkParams(method, { jobId });
        context.exitCode = await withSession({ flags, context }, async ({ session }) => {
          const answer = await session.request(method, { jobId });
          if (flags.json === true) printJson(context, answer);
          else printText(context, `${answer.jobId}: ${answer.state}`);
          return EXIT.ok;
        });
      },
    );
  }
}
