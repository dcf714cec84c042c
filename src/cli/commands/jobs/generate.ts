// `gptd generate`: continues a prompt, which is text or token ids. The text streams to stdout token by token.

import type { Command } from 'commander';
import type { CliContext } from '../../context.ts';
import { usageError } from '../../exit-codes.ts';
import {
  addSubmitFlags,
  checkSpec,
  collectBiases,
  collectIds,
  parseIds,
  parseNumber,
  specFields,
  without,
  type SubmitFlags,
} from '../../flags.ts';
import { submitJob } from '../../submit.ts';

/** The flags of `generate`. A flag that is not named here has the name and the type of its field in the spec. */
export interface GenerateFlags extends SubmitFlags {
  readonly prompt?: string;
  readonly promptIds?: readonly number[];
  readonly stopId?: readonly number[];
  readonly banId?: readonly number[];
  readonly [field: string]: unknown;
}

export function addGenerateCommand(program: Command, context: CliContext): void {
  const command = program
    .command('generate')
    .argument('<name>', 'model, or model@step, or model@best')
    .description('continue a prompt')
    .option('--prompt <text>', 'text to continue')
    .option('--prompt-ids <ids>', 'token ids to continue, like 1,2,3', parseIds)
    .option('--max-tokens <count>', 'most tokens to generate (default: 50)', parseNumber)
    .option('--temperature <number>', '0 takes the likeliest token (default: 0)', parseNumber)
    .option('--top-k <count>', 'draw among that many likeliest tokens', parseNumber)
    .option('--top-p <fraction>', 'draw among the likeliest tokens with that much probability', parseNumber)
    .option('--min-p <fraction>', 'draw among tokens at least that likely, relative to the likeliest', parseNumber)
    .option('--repetition-penalty <number>', 'make tokens that occurred less likely; 1 changes nothing', parseNumber)
    .option(
      '--presence-penalty <number>',
      'subtract this once from the logits of generated tokens, -2 to 2',
      parseNumber,
    )
    .option('--frequency-penalty <number>', 'subtract this for each time a token was generated, -2 to 2', parseNumber)
    .option('--logit-bias <id=bias...>', 'add these biases to the logits of ids, -100 to 100', collectBiases)
    .option('--ban-id <id...>', 'never generate any of these ids', collectIds)
    .option('--seed <number>', 'seed of the draws (default: 123)', parseNumber)
    .option('--stop <text...>', 'stop before any of these texts')
    .option('--stop-id <id...>', 'stop at any of these ids', collectIds)
    .option('--n <count>', 'samples to generate (default: 1)', parseNumber)
    .option('--logprobs <count>', 'list that many of the likeliest tokens with each one', parseNumber)
    .option('--on-context-full <what>', 'stop, or slide on over the last half of the context (default: stop)')
    .option('--quantize <bits>', 'serve the weights as int8 or int4')
    .option('--no-speculate', 'one token a step, without drafts; the text is the same');
  addSubmitFlags(command).action(async (model: string, flags: GenerateFlags) => {
    const spec = generateSpecOf(model, flags);
    context.exitCode = await submitJob({ kind: 'generate', flags, context, spec: () => Promise.resolve(spec) });
  });
}

/** Returns the spec of a `generate` job. Throws a usage error that names the flag when the spec is invalid. */
export function generateSpecOf(model: string, flags: GenerateFlags): Readonly<Record<string, unknown>> {
  if ((flags.prompt === undefined) === (flags.promptIds === undefined)) {
    throw usageError('Give either --prompt TEXT or --prompt-ids 1,2,3.');
  }
  const { stopId, banId } = flags;
  const spec = {
    ...without(specFields(flags), ['stopId', 'banId']),
    ...(stopId === undefined ? {} : { stopIds: stopId }),
    ...(banId === undefined ? {} : { bannedIds: banId }),
    model,
  };
  checkSpec('generate', spec);
  return spec;
}
