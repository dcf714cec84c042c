// `gptd models`: lists the models that the daemon holds, shows one of them or deletes one.

import type { Command } from 'commander';
import { withSession } from '../../connection.ts';
import { printJson, printText, type CliContext } from '../../context.ts';
import { EXIT } from '../../exit-codes.ts';
import { addConnectionFlags, checkParams, type ConnectionFlags } from '../../flags.ts';
import { formatModel, formatModels } from '../../render/records.ts';

/**
 * `models` alone lists. Its flags may stand before or after `show` and `rm`, so these two commands read the flags of both places.
 */
export function addModelsCommand(program: Command, context: CliContext): void {
  const models = addConnectionFlags(
    program.command('models').description('list models, show one or delete one'),
  ).action(async (flags: ConnectionFlags) => {
    context.exitCode = await withSession({ flags, context }, async ({ session }) => {
      const answer = await session.request('model.list', {});
      if (flags.json === true) printJson(context, answer);
      else printText(context, formatModels(answer.models));
      return EXIT.ok;
    });
  });
  addConnectionFlags(models.command('show').argument('<name>', 'model').description('show one model')).action(
    async (model: string, _own: ConnectionFlags, command: Command) => {
      context.exitCode = await showModel(model, { flags: command.optsWithGlobals(), context });
    },
  );
  addConnectionFlags(
    models.command('rm').argument('<name>', 'model').description('delete a model and its checkpoints'),
  ).action(async (model: string, _own: ConnectionFlags, command: Command) => {
    context.exitCode = await deleteModel(model, { flags: command.optsWithGlobals(), context });
  });
}

interface CommandCall {
  readonly flags: ConnectionFlags;
  readonly context: CliContext;
}

async function showModel(model: string, { flags, context }: CommandCall): Promise<number> {
  checkParams('model.get', { model });
  return withSession({ flags, context }, async ({ session }) => {
    const answer = await session.request('model.get', { model });
    if (flags.json === true) printJson(context, answer);
    else printText(context, formatModel(answer));
    return EXIT.ok;
  });
}

async function deleteModel(model: string, { flags, context }: CommandCall): Promise<number> {
  checkParams('model.delete', { model });
  return withSession({ flags, context }, async ({ session }) => {
    const answer = await session.request('model.delete', { model });
    if (flags.json === true) printJson(context, answer);
    else printText(context, `deleted ${model}`);
    return EXIT.ok;
  });
}
