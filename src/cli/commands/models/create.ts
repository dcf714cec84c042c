// `gptd create`: makes a model with fresh weights, in the shape that the flags describe.

import { Option, type Command } from 'commander';
import type { CliContext } from '../../context.ts';
import { addSubmitFlags, checkSpec, parseNumber, specFields, type SubmitFlags } from '../../flags.ts';
import { submitJob } from '../../submit.ts';
import { addConfigFlags, configOf, tokenizerOption, withoutConfigFlags, type ConfigFlags } from './config-flags.ts';

type CreateFlags = SubmitFlags &
  ConfigFlags & { readonly seed?: number; readonly init?: 'torch' | 'gpt2'; readonly tokenizer?: string };

export function addCreateCommand(program: Command, context: CliContext): void {
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

/** Returns the spec of a `create` job. Throws a usage error that names the flag when the spec is invalid. */
export function createSpecOf(model: string, flags: CreateFlags): Readonly<Record<string, unknown>> {
  const spec = { model, config: configOf(flags), ...specFields(withoutConfigFlags(flags)) };
  checkSpec('create', spec);
  return spec;
}
