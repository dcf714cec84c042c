// `gptd selftest`: checks this installation without a daemon. The code of the checks is loaded only when the command runs.

import { Option, type Command } from 'commander';
import { printJson, printText, type CliContext } from '../../context.ts';
import { EXIT } from '../../exit-codes.ts';

interface SelftestFlags {
  readonly engine: 'auto' | 'onnx' | 'tensorflow';
  readonly json?: boolean;
}

export function addSelftestCommand(program: Command, context: CliContext): void {
  program
    .command('selftest')
    .description('check that this installation computes and keeps what it should; no daemon is needed')
    .addOption(new Option('--engine <name>', 'what computes').choices(['auto', 'onnx', 'tensorflow']).default('auto'))
    .option('--json', 'print one JSON document')
    .action(async ({ engine, json = false }: SelftestFlags) => {
      const { runSelftest } = await import('../../../offline/selftest.ts');
      const report = await runSelftest({ engine });
      if (json) printJson(context, report);
      else {
        const { name, version, fingerprint } = report.engine;
        const width = Math.max(...report.checks.map((check) => check.name.length));
        const lines = report.checks.map(({ name: check, ok, detail, elapsedMs }) => {
          const seconds = `${(elapsedMs / 1000).toFixed(1)} s`.padStart(7);
          return `${ok ? 'ok  ' : 'FAIL'}  ${check.padEnd(width)}  ${seconds}  ${detail}`;
        });
        const failed = report.checks.filter(({ ok }) => !ok).length;
        const verdict = failed === 0 ? 'All checks passed' : `${failed} of ${report.checks.length} checks failed`;
        printText(context, `gptd ${report.version} on ${name} ${version} (${fingerprint})`);
        printText(context, lines.join('\n'));
        printText(context, `${verdict} in ${(report.elapsedMs / 1000).toFixed(1)} s.`);
      }
      context.exitCode = report.ok ? EXIT.ok : EXIT.jobFailed;
    });
}
