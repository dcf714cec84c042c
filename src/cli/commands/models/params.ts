// `gptd params`: shows what a configuration would take. The daemon counts it without making a model.

import type { Command } from 'commander';
import type { CliContext } from '../../context.ts';
import { addConnectionFlags, checkSpec, type ConnectionFlags } from '../../flags.ts';
import { submitJob } from '../../submit.ts';
import { addConfigFlags, configOf, type ConfigFlags } from './config-flags.ts';

export function addParamsCommand(program: Command, context: CliContext): void {
  const command = program
    .command('params')
    .description('count parameters and memory, and show how blocks would be split');
  addConnectionFlags(addConfigFlags(command)).action(async (flags: ConnectionFlags & ConfigFlags) => {
    const spec = paramsSpecOf(flags);
    context.exitCode = await submitJob({ kind: 'params', flags, context, spec: () => Promise.resolve(spec) });
  });
}

/** Returns the spec of a `params` job. Throws a usage error that names the flag when the spec is invalid. */
export function paramsSpecOf(flags: ConfigFlags): Readonly<Record<string, unknown>> {
  const spec = { config: configOf(flags) };
  checkSpec('params', spec);
  return spec;
}
