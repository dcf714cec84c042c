// The command line of the chaos suite: picks rows, scales them, runs one after the other and says what came out. The exit
// code is 1 when anything failed; a row that could not run is named, and neither passed nor failed.

import { parseArgs } from 'node:util';
import process from 'node:process';
import { Random } from './random.ts';
import { writeResults, type Line } from './results.ts';
import { missingPrograms, runRow, type Row } from './row.ts';
import { ROWS } from './rows.ts';

interface Plan {
  readonly rows: readonly Row[];
  readonly scale: number;
  readonly seed: number;
  readonly write: boolean;
}

export async function main(argv: readonly string[]): Promise<number> {
  const plan = readPlan(argv);
  if (plan === null) return 2;
  const { rows, scale, seed, write } = plan;
  console.log(`seed ${seed}; the same again: npm run test:chaos -- --seed ${seed}`);
  const lines: Line[] = [];
  for (const row of rows) {
    const missing = missingPrograms(row);
    if (missing.length > 0) {
      lines.push({ row, ran: false, why: `not installed: ${missing.join(', ')}` });
    } else {
      const tries = Math.max(1, Math.round(row.tries * scale));
      process.stdout.write(`${row.name}  ${row.title}: ${tries} of ${row.tries} tries ...\n`);
      const startedAt = performance.now();
      const outcome = await runRow(row, { tries, random: new Random(seed, row.name) });
      lines.push({ row, ran: true, seed, outcome, seconds: (performance.now() - startedAt) / 1000 });
    }
    tell(lines[lines.length - 1]);
    if (write) writeResults(lines);
  }
  const failed = lines.filter((line) => line.ran && (line.outcome.failures > 0 || line.outcome.tries === 0));
  const skipped = lines.filter(({ ran }) => !ran);
  console.log(
    `${lines.length - failed.length - skipped.length} rows held, ${failed.length} failed, ${skipped.length} did not run.`,
  );
  if (skipped.length > 0) console.log('scripts/chaos-tools.sh installs what is missing, from Debian.');
  return failed.length > 0 ? 1 : 0;
}

function tell(line: Line): void {
  if (!line.ran) {
    console.log(`${line.row.name}  ${line.row.title}: DID NOT RUN, ${line.why}`);
    return;
  }
  const { outcome, seconds, row } = line;
  console.log(`${row.name}  ${outcome.tries} tries, ${outcome.failures} failures, ${seconds.toFixed(1)} s`);
  for (const note of outcome.notes) console.log(`    ${note.replaceAll('\n', '\n    ')}`);
}

function readPlan(argv: readonly string[]): Plan | null {
  const { values } = parseArgs({
    args: [...argv],
    options: {
      only: { type: 'string' },
      scale: { type: 'string', default: '1' },
      seed: { type: 'string', default: String(Date.now() % 1_000_000) },
      write: { type: 'boolean', default: false },
      list: { type: 'boolean', default: false },
    },
  });
  if (values.list) {
    for (const { name, title, tries } of ROWS) console.log(`${name.padEnd(6)} ${tries} x ${title}`);
    return null;
  }
  const names = values.only?.split(',').map((name) => name.trim());
  const unknown = names?.filter((name) => !ROWS.some((row) => row.name === name)) ?? [];
  const [scale, seed] = [values.scale, values.seed].map(Number);
  if (unknown.length > 0 || !(scale > 0) || !Number.isSafeInteger(seed)) {
    console.error(
      unknown.length > 0
        ? `There is no row ${unknown.join(', ')}: --list names them all.`
        : '--scale is a number above 0, --seed is an integer.',
    );
    return null;
  }
  const rows = names === undefined ? ROWS : ROWS.filter(({ name }) => names.includes(name));
  return { rows, scale, seed, write: values.write || scale === 1 };
}
