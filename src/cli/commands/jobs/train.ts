// `gptd train`: the flags, which become the spec of a training job. The daemon has the defaults, so a flag that was not given is
// not in the spec.

import { Option, type Command } from 'commander';
import { SCHEDULES } from '../../../daemon/protocol/training.ts';
import type { CliContext } from '../../context.ts';
import { addSubmitFlags, parseNumber } from '../../flags.ts';
import { dataTokenizerOption, submitWithData, type DataFlags } from './data-jobs.ts';

export function addTrainCommand(program: Command, context: CliContext): void {
  const command = program
    .command('train')
    .argument('<name>', 'model, or model@step, or model@best')
    .description('train a model on text or token files')
    .requiredOption('--data <file...>', 'training data: .txt, .jsonl ("text" field) or .bin (uint16 token ids)')
    .addOption(dataTokenizerOption())
    .addOption(new Option('--steps <count>', 'optimizer steps').argParser(parseNumber).conflicts('epochs'))
    .option('--epochs <count>', 'passes over the data (default: 1)', parseNumber)
    .option('--batch-size <count>', 'sequences per step (default: 4)', parseNumber)
    .option('--micro-batch-size <count>', 'sequences per micro-batch; divides the batch size', parseNumber)
    .option('--context-length <count>', "tokens per sequence (default: the model's)", parseNumber)
    .option('--stride <count>', 'tokens between the starts of sequences (default: the context length)', parseNumber)
    .option('--no-shuffle', 'take the sequences in order')
    .option('--val-split <fraction>', 'part of the data kept for validation (default: 0.1)', parseNumber)
    .option('--seed <number>', 'seed of data order and dropout (default: 123)', parseNumber);
  addOptimizerFlags(command);
  addSubmitFlags(command).action(async (model: string, flags: DataFlags) => {
    context.exitCode = await submitWithData('train', { model, flags, context });
  });
}

function addOptimizerFlags(command: Command): void {
  command
    .option('--lr <rate>', 'learning rate (default: 4e-4)', parseNumber)
    .option('--min-lr <rate>', 'learning rate at the end of a schedule (default: 0)', parseNumber)
    .option('--warmup-steps <count>', 'steps of linear warm-up (default: 0)', parseNumber)
    .addOption(
      new Option('--schedule <name>', 'how the learning rate changes (default: constant)').choices([...SCHEDULES]),
    )
    .option('--decay-steps <count>', 'steps of the decay that ends wsd (default: a fifth of the run)', parseNumber)
    .option('--beta1 <number>', 'AdamW (default: 0.9)', parseNumber)
    .option('--beta2 <number>', 'AdamW (default: 0.999)', parseNumber)
    .option('--eps <number>', 'AdamW (default: 1e-8)', parseNumber)
    .option('--weight-decay <number>', 'AdamW (default: 0.1)', parseNumber)
    .addOption(new Option('--decay <what>', 'which tensors decay (default: matrices)').choices(['matrices', 'all']))
    .option('--grad-clip <norm>', 'largest gradient norm, 0 for none (default: 1)', parseNumber)
    .option('--eval-every <steps>', 'evaluate that often (default: at the end)', parseNumber)
    .option('--eval-batches <count>', 'batches per evaluation (default: 5)', parseNumber)
    .option('--sample-every <steps>', 'show generated text that often (default: never)', parseNumber)
    .option('--sample-prompt <text>', 'what samples continue (default: the first tokens of the data)')
    .option('--sample-tokens <count>', 'tokens of a sample (default: 50)', parseNumber)
    .option('--sample-temperature <number>', '0 takes the likeliest token (default: 0)', parseNumber)
    .option('--patience <count>', 'stop after that many evaluations without a lower validation loss', parseNumber)
    .option('--checkpoint-every <steps|60s>', 'steps or seconds between checkpoints (default: 60s)', parseInterval)
    .option('--keep-last <count>', 'checkpoints to keep (default: 2)', parseNumber)
    .option('--resume', "continue with the optimizer's state of the newest checkpoint");
}

/** Reads a count of steps, or a time like `60s`, which the spec takes as it is. */
const parseInterval = (text: string): number | string => (text.endsWith('s') ? text : parseNumber(text));
