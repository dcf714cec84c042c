// `gptd evaluate`: measures how well a checkpoint predicts a text.

import type { Command } from 'commander';
import type { CliContext } from '../../context.ts';
import { addSubmitFlags, parseNumber } from '../../flags.ts';
import { dataTokenizerOption, submitWithData, type DataFlags } from './data-jobs.ts';

export function addEvaluateCommand(program: Command, context: CliContext): void {
  const command = program
    .command('evaluate')
    .argument('<name>', 'model, or model@step, or model@best')
    .description('loss, perplexity and bits per byte of a model on text or token files')
    .requiredOption('--data <file...>', 'data: .txt, .jsonl ("text" field) or .bin (uint16 token ids)')
    .addOption(dataTokenizerOption())
    .option('--context-length <count>', "tokens per window (default: the model's)", parseNumber)
    .option('--stride <count>', 'tokens between the starts of windows (default: the context length)', parseNumber)
    .option('--batch-size <count>', 'windows at once (default: 8)', parseNumber)
    .option('--max-batches <count>', 'evaluate only that many first batches (default: the whole text)', parseNumber)
    .option('--quantize <bits>', 'evaluate the weights as they are served as int8 or int4, too');
  addSubmitFlags(command).action(async (model: string, flags: DataFlags) => {
    context.exitCode = await submitWithData('evaluate', { model, flags, context });
  });
}
