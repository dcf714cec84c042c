// `gptd backup FILE`: copies the data directory's database, whether its daemon runs or not. The daemon opens no path that a
// client names, so the copy is made in this process, by a user who may read the directory anyway. The code that copies is loaded
// only when the command runs.

import type { Command } from 'commander';
import { dataDirOf } from '../../connection.ts';
import { printJson, printText, type CliContext } from '../../context.ts';

export function addBackupCommand(program: Command, context: CliContext): void {
  program
    .command('backup <file>')
    .description(
      'copy the database into a new file, also while the daemon runs: all models, jobs and events of one moment',
    )
    .option('--data-dir <directory>', 'where the daemon keeps its data')
    .option('--json', 'print one JSON document')
    .action(async (file: string, flags: { readonly dataDir?: string; readonly json?: boolean }) => {
      const { backUp } = await import('../../../offline/backup.ts');
      const backup = backUp(dataDirOf(flags, context), file);
      if (flags.json) {
        printJson(context, backup);
        return;
      }
      const megabytes = (backup.bytes / 1e6).toFixed(1);
      printText(context, `${backup.file}: ${megabytes} MB, ${backup.models} models, ${backup.jobs} jobs, checked.`);
      printText(context, 'To restore it, make it gptd.db in an empty data directory and start a daemon there.');
    });
}
