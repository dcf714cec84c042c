// `gptd doctor`: looks at the machine and the data directory without a daemon, and says what to do about each fault. The code
// of the examination is loaded only when the command runs.

import { Option, type Command } from 'commander';
import { DEFAULT_HOST, DEFAULT_PORT, VERSION } from '../../../daemon/protocol/daemon.ts';
import { dataDirOf } from '../../connection.ts';
import { printJson, printText, type CliContext } from '../../context.ts';
import { EXIT } from '../../exit-codes.ts';

interface DoctorFlags {
  readonly dataDir?: string;
  readonly host: string;
  readonly port: number;
  readonly engine: 'auto' | 'onnx' | 'tensorflow';
  readonly json?: boolean;
}

export function addDoctorCommand(program: Command, context: CliContext): void {
  program
    .command('doctor')
    .description('look for faults of the machine and the data directory, and say what to do; no daemon is needed')
    .option('--data-dir <directory>', 'where the daemon keeps its data')
    .option('--host <address>', 'where the daemon would listen', DEFAULT_HOST)
    .option('--port <number>', 'the port on which it would listen', Number, DEFAULT_PORT)
    .addOption(new Option('--engine <name>', 'what computes').choices(['auto', 'onnx', 'tensorflow']).default('auto'))
    .option('--json', 'print one JSON document')
    .action(async (flags: DoctorFlags) => {
      const { examine } = await import('../../../offline/doctor.ts');
      const { host, port, engine } = flags;
      const findings = await examine({ dataDir: dataDirOf(flags, context), host, port, engine });
      const ok = findings.every((finding) => finding.ok);
      if (flags.json) printJson(context, { ok, version: VERSION, findings });
      else {
        const width = Math.max(...findings.map(({ name }) => name.length));
        for (const finding of findings) {
          printText(context, `${finding.ok ? 'ok  ' : 'FAIL'}  ${finding.name.padEnd(width)}  ${finding.detail}`);
          if (finding.advice !== null) printText(context, `${' '.repeat(width + 8)}${finding.advice}`);
        }
        printText(context, ok ? 'Nothing is wrong.' : 'See the advice behind each FAIL.');
      }
      context.exitCode = ok ? EXIT.ok : EXIT.jobFailed;
    });
}
