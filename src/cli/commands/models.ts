// Commands about models as things: count one, create one, import one, list, show and delete them and their checkpoints.
// Training and generating have files of their own.

import { Option, type Command } from 'commander';
import { EXIT } from '../exit-codes.ts';
import { TOKENIZERS } from '../../daemon/protocol/fields.ts';
import { addConfigFlags, configOf, withoutConfigFlags, type ConfigFlags } from '../config-flags.ts';
import { printJson, printText, type CliContext } from '../context.ts';
import {
  addConnectionFlags,
  addSubmitFlags,
  checkParams,
  checkSpec,
  parseNumber,
  specFields,
  type ConnectionFlags,
  type SubmitFlags,
} from '../flags.ts';
import { formatCheckpoints, formatModel, formatModels } from '../render/records.ts';
import { submitJob, withSession } from '../submit.ts';
import { DIGEST_TO_COME, importFilesOf, uploadFile } from '../client/upload.ts';

type CreateFlags = SubmitFlags &
  ConfigFlags & { readonly seed?: number; readonly init?: 'torch' | 'gpt2'; readonly tokenizer?: string };
type ImportFlags = SubmitFlags & { readonly tokenizer?: string; readonly nHeads?: number };

const tokenizerOption = (): Option =>
  new Option('--tokenizer <name>', "the model's tokenizer (default: by its vocabulary)").choices([...TOKENIZERS]);

export function addModelCommands(program: Command, context: CliContext): void {
  addParams(program, context);
  addCreate(program, context);
  addImport(program, context);
  addModels(program, context);
  addConnectionFlags(
    program.command('checkpoints').argument('<name>', 'model').description("list a model's checkpoints"),
  ).action(async (model: string, flags: ConnectionFlags) => {
    context.exitCode = await listCheckpoints(model, { flags, context });
  });
}

/** The spec of a `params` job. */
export function paramsSpecOf(flags: ConfigFlags): Readonly<Record<string, unknown>> {
  const spec = { config: configOf(flags) };
  checkSpec('params', spec);
  return spec;
}

/** The spec of a `create` job. */
export function createSpecOf(model: string, flags: CreateFlags): Readonly<Record<string, unknown>> {
  const spec = { model, config: configOf(flags), ...specFields(withoutConfigFlags(flags)) };
  checkSpec('create', spec);
  return spec;
}

function addParams(program: Command, context: CliContext): void {
  const command = program
    .command('params')
    .description('count parameters and memory, and show how blocks would be split');
  addConnectionFlags(addConfigFlags(command)).action(async (flags: ConnectionFlags & ConfigFlags) => {
    const spec = paramsSpecOf(flags);
    context.exitCode = await submitJob({ kind: 'params', flags, context, spec: () => Promise.resolve(spec) });
  });
}

function addCreate(program: Command, context: CliContext): void {
  const command = program
    .command('create')
    .argument('<name>', 'the new model')
    .description('create a model with fresh weights');
  addConfigFlags(command)
    .option('--seed <number>', 'seed of the weights (default: 123)', parseNumber)
    .addOption(
      new Option('--init <scheme>', 'PyTorch or GPT-2 initial weights (default: torch)').choices(['torch', 'gpt2']),
    )
    .addOption(tokenizerOption());
  addSubmitFlags(command).action(async (model: string, flags: CreateFlags) => {
    const spec = createSpecOf(model, flags);
    context.exitCode = await submitJob({ kind: 'create', flags, context, spec: () => Promise.resolve(spec) });
  });
}

function addImport(program: Command, context: CliContext): void {
  const command = program
    .command('import')
    .argument('<name>', 'the new model')
    .argument(
      '<path>',
      'directory with model.safetensors and config.json, or a .safetensors file beside its config.json',
    )
    .description('make a model from GPT-2 weights in safetensors format')
    .addOption(tokenizerOption())
    .option('--n-heads <count>', 'heads, for weights without a config.json', parseNumber);
  addSubmitFlags(command).action(async (model: string, path: string, flags: ImportFlags) => {
    const files = await importFilesOf(path);
    const digests: Record<string, string> = {};
    for (const name of Object.keys(files)) digests[name] = DIGEST_TO_COME;
    const spec = { model, ...specFields(flags) };
    checkSpec('import', { ...spec, files: digests });
    context.exitCode = await submitJob({
      kind: 'import',
      flags,
      context,
      spec: async ({ session, progress }) => {
        for (const [name, file] of Object.entries(files)) {
          digests[name] = await uploadFile(file, { address: session.address, progress });
        }
        return { ...spec, files: digests };
      },
    });
  });
}

/** `models` alone lists; its flags may stand before or after `show` and `rm`, so those read the flags of both. */
function addModels(program: Command, context: CliContext): void {
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

async function listCheckpoints(model: string, { flags, context }: CommandCall): Promise<number> {
  checkParams('checkpoint.list', { model });
  return withSession({ flags, context }, async ({ session }) => {
    const answer = await session.request('checkpoint.list', { model });
    if (flags.json === true) printJson(context, answer);
    else printText(context, formatCheckpoints(answer.checkpoints));
    return EXIT.ok;
  });
}
