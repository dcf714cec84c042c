// The commander program: every command and what they share. Errors are thrown, not printed, and nothing here exits, so
// that main.ts is the one place that does.

import { Command } from 'commander';
import { VERSION } from '../daemon/protocol/daemon.ts';
import { addBackupCommand } from './commands/backup.ts';
import type { CliContext } from './context.ts';
import { addDataCommand } from './commands/data.ts';
import { addDoctorCommand } from './commands/doctor.ts';
import { addEvaluateCommand } from './commands/evaluate.ts';
import { addExportCommand } from './commands/export.ts';
import { addGenerateCommand } from './commands/generate.ts';
import { addHistoryCommands } from './commands/history.ts';
import { addInspectCommand } from './commands/inspect.ts';
import { addJobCommands } from './commands/jobs.ts';
import { addModelCommands } from './commands/models.ts';
import { addSelftestCommand } from './commands/selftest.ts';
import { addStartCommand } from './commands/start.ts';
import { addStopAndStatusCommands } from './commands/stop.ts';
import { addTrainCommand } from './commands/train.ts';

const EXAMPLES = `
Examples:
  gptd start --detach
  gptd params --config gpt2-medium
  gptd create tiny --vocab-size 256 --context-length 128 --emb-dim 128 --n-layers 4 --n-heads 4 --tokenizer byte --init gpt2
  gptd train tiny --data book.txt --steps 1000 --batch-size 16 --lr 1e-3 --schedule cosine --eval-every 100
  gptd evaluate tiny --data other-book.txt
  gptd history tiny
  gptd generate tiny --prompt "Call me" --max-tokens 200 --temperature 0.8
  gptd jobs --all
  gptd stop

Exit codes: 0 done, 1 the job failed, 2 usage, 69 no daemon, 75 data directory in use, 78 unsafe configuration, 130 cancelled.`;

export function buildProgram(context: CliContext): Command {
  const program = new Command('gptd')
    .description('Create, train and serve GPT models from Node.js.')
    .version(VERSION)
    .helpCommand(false)
    .exitOverride()
    .configureOutput({
      writeOut: (text) => context.stdout.write(text),
      writeErr: (text) => context.stderr.write(text),
      // main.ts prints what went wrong, once and on one line.
      outputError: () => undefined,
    });
  addStartCommand(program, context);
  addStopAndStatusCommands(program, context);
  addSelftestCommand(program, context);
  addDoctorCommand(program, context);
  addBackupCommand(program, context);
  addModelCommands(program, context);
  addExportCommand(program, context);
  addInspectCommand(program, context);
  addDataCommand(program, context);
  addTrainCommand(program, context);
  addEvaluateCommand(program, context);
  addHistoryCommands(program, context);
  addGenerateCommand(program, context);
  addJobCommands(program, context);
  return program.addHelpText('after', EXAMPLES);
}
