// `gptd status`: shows what the daemon is and does.

import type { Command } from 'commander';
import { withSession } from '../../connection.ts';
import { printJson, printText, type CliContext } from '../../context.ts';
import { EXIT } from '../../exit-codes.ts';
import { addConnectionFlags, type ConnectionFlags } from '../../flags.ts';
import { formatStatus } from '../../render/records.ts';

export function addStatusCommand(program: Command, context: CliContext): void {
  addConnectionFlags(program.command('status').description('show what the daemon is and does')).action(
    async (flags: ConnectionFlags) => {
      context.exitCode = await status(flags, context);
    },
  );
}

async function status(flags: ConnectionFlags, context: CliContext): Promise<number> {
  return withSession({ flags, context }, async ({ session }) => {
    const answer = await session.request('daemon.status', {});
    if (flags.json === true) printJson(context, answer);
    else printText(context, formatStatus(answer, session.address.url));
    return EXIT.ok;
  });
}
