// The commander program: all commands and what they share. Errors are thrown, not printed, and nothing here exits, so that
// main.ts is the one place that prints errors and exits.

import { Command } from 'commander';
import { VERSION } from '../daemon/protocol/daemon.ts';
import { addBackupCommand } from './commands/daemon/backup.ts';
import { addDoctorCommand } from './commands/daemon/doctor.ts';
import { addSelftestCommand } from './commands/daemon/selftest.ts';
import { addStartCommand } from './commands/daemon/start.ts';
import { addStatusCommand } from './commands/daemon/status.ts';
import { addStopCommand } from './commands/daemon/stop.ts';
import { addAttachCommand } from './commands/jobs/attach.ts';
import { addControlCommands } from './commands/jobs/control.ts';
import { addEvaluateCommand } from './commands/jobs/evaluate.ts';
import { addGenerateCommand } from './commands/jobs/generate.ts';
import { addJobsCommand } from './commands/jobs/jobs.ts';
import { addTrainCommand } from './commands/jobs/train.ts';
import { addCheckpointsCommand } from './commands/models/checkpoints.ts';
import { addCreateCommand } from './commands/models/create.ts';
import { addDataCommand } from './commands/models/data.ts';
import { addExportCommand } from './commands/models/export.ts';
import { addHistoryCommand } from './commands/models/history.ts';
import { addImportCommand } from './commands/models/import.ts';
import { addInspectCommand } from './commands/models/inspect.ts';
import { addModelsCommand } from './commands/models/models.ts';
import { addParamsCommand } from './commands/models/params.ts';
import { addVerifyCommand } from './commands/models/verify.ts';
import type { CliContext } from './context.ts';

/** The commands in the order of the help. */
const COMMANDS: readonly ((program: Command, context: CliContext) => void)[] = [
  addStartCommand,
  addStopCommand,
  addStatusCommand,
  addSelftestCommand,
  addDoctorCommand,
  addBackupCommand,
  addParamsCommand,
  addCreateCommand,
  addImportCommand,
  addModelsCommand,
  addCheckpointsCommand,
  addExportCommand,
  addInspectCommand,
  addDataCommand,
  addTrainCommand,
  addEvaluateCommand,
  addHistoryCommand,
  addVerifyCommand,
  addGenerateCommand,
  addJobsCommand,
  addAttachCommand,
  addControlCommands,
];

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
  for (const addCommand of COMMANDS) addCommand(program, context);
  return program.addHelpText('after', EXAMPLES);
}
