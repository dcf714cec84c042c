// `gptd verify`: computes a checkpoint's digest and hash chain again and compares them with the recorded ones.

import type { Command } from 'commander';
import { withSession } from '../../connection.ts';
import { printJson, printText, type CliContext } from '../../context.ts';
import { EXIT } from '../../exit-codes.ts';
import { addConnectionFlags, checkParams, type ConnectionFlags } from '../../flags.ts';
import { formatVerified } from '../../render/history.ts';

export function addVerifyCommand(program: Command, context: CliContext): void {
  const verify = program
    .command('verify')
    .argument('<name>', 'model, or model@step, or model@best')
    .description("compute a checkpoint's digest and hash chain again from what is stored");
  addConnectionFlags(verify).action(async (model: string, flags: ConnectionFlags) => {
    context.exitCode = await verifyModel(model, { flags, context });
  });
}

async function verifyModel(
  model: string,
  { flags, context }: { readonly flags: ConnectionFlags; readonly context: CliContext },
): Promise<number> {
  checkParams('model.verify', { model });
  return withSession({ flags, context }, async ({ session }) => {
    const result = await session.request('model.verify', { model });
    if (flags.json === true) printJson(context, result);
    else printText(context, formatVerified(result));
    return result.ok ? EXIT.ok : EXIT.jobFailed;
  });
}
