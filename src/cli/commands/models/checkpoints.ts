// `gptd checkpoints`: lists the checkpoints that are kept of a model.

import type { Command } from 'commander';
import { withSession } from '../../connection.ts';
import { printJson, printText, type CliContext } from '../../context.ts';
import { EXIT } from '../../exit-codes.ts';
import { addConnectionFlags, checkParams, type ConnectionFlags } from '../../flags.ts';
import { formatCheckpoints } from '../../render/records.ts';

export function addCheckpointsCommand(program: Command, context: CliContext): void {
  addConnectionFlags(
    program.command('checkpoints').argument('<name>', 'model').description("list a model's checkpoints"),
  ).action(async (model: string, flags: ConnectionFlags) => {
    checkParams('checkpoint.list', { model });
    context.exitCode = await withSession({ flags, context }, async ({ session }) => {
      const answer = await session.request('checkpoint.list', { model });
      if (flags.json === true) printJson(context, answer);
      else printText(context, formatCheckpoints(answer.checkpoints));
      return EXIT.ok;
    });
  });
}
