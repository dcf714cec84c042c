// `gptd generate`: a prompt as text or as token ids, and the sampling flags. The text streams to stdout token by token.

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

/** Flags of `generate`; those that are not named here have the name and type of their field in the spec. */
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
    .option('--repetition-penalty <number>', 'make tokens that occurred less likely (1: not)', parseNumber)
    .option('--presence-penalty <number>', 'taken from logits of tokens generated already, -2 to 2', parseNumber)
    .option('--frequency-penalty <number>', 'the same for each time they were generated, -2 to 2', parseNumber)
    .option('--logit-bias <id=bias...>', 'added to the logits of these ids, -100 to 100', collectBiases)
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

/** The spec of a generating job. */
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
