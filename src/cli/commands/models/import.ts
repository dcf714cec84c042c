// `gptd import`: uploads weights that other programs wrote and makes a model from them.

import type { Command } from 'commander';
import type { CliContext } from '../../context.ts';
import { addSubmitFlags, checkSpec, parseNumber, specFields, type SubmitFlags } from '../../flags.ts';
import { DIGEST_TO_COME, sendFile } from '../../source-files.ts';
import { submitJob } from '../../submit.ts';
import { tokenizerOption } from './config-flags.ts';
import { importFilesOf } from './import-files.ts';

type ImportFlags = SubmitFlags & { readonly tokenizer?: string; readonly nHeads?: number };

export function addImportCommand(program: Command, context: CliContext): void {
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
      spec: async (opened) => {
        for (const [name, file] of Object.entries(files)) digests[name] = await sendFile(file, opened);
        return { ...spec, files: digests };
      },
    });
  });
}
