// `gptd data export`: writes text as a file of token ids for nanoGPT or llm.c. No daemon is asked. The tokenizers are loaded only
// when the command runs.

import { Option, type Command } from 'commander';
import { printJson, printText, type CliContext } from '../../context.ts';
import { EXIT } from '../../exit-codes.ts';
import { formatCount } from '../../render/records.ts';
import { checkSourceFile } from '../../source-files.ts';

interface DataExportFlags {
  readonly tokenizer: 'gpt2' | 'byte';
  readonly out: string;
  readonly llmc?: boolean;
  readonly json?: boolean;
}

export function addDataCommand(program: Command, context: CliContext): void {
  program
    .command('data')
    .description('work on training data; no daemon is needed')
    .command('export')
    .argument('<file...>', 'text: .txt, or .jsonl with a "text" field')
    .description('write text as uint16 token ids, as nanoGPT and llm.c read them')
    .addOption(new Option('--tokenizer <name>', 'how text becomes tokens').choices(['gpt2', 'byte']).default('gpt2'))
    .requiredOption('--out <file>', 'the .bin file to write')
    .option('--llmc', "begin with llm.c's header of 256 numbers")
    .option('--json', 'print one JSON document')
    .action(async (files: readonly string[], { tokenizer, out, llmc = false, json = false }: DataExportFlags) => {
      for (const file of files) await checkSourceFile(file);
      const { exportTokens } = await import('../../../offline/token-export.ts');
      const { tokens } = await exportTokens({ files, tokenizer, out, llmc });
      if (json) printJson(context, { out, tokens, tokenizer, format: llmc ? 'llm.c tokens' : 'tokens' });
      else printText(context, `wrote ${out}: ${formatCount(tokens)} tokens`);
      context.exitCode = EXIT.ok;
    });
}
