// The command line of the chaos suite. It picks rows, scales them, runs one after the other and says what came out. The exit code is 1
// when anything failed. A row that could not run is named, and has neither passed nor failed.

import { parseArgs } from 'node:util';
import process from 'node:process';
import { EXIT } from '../../src/cli/exit-codes.ts';
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

const OPTIONS = {
  only: { type: 'string' },
  scale: { type: 'string', default: '1' },
  seed: { type: 'string' },
  write: { type: 'boolean', default: false },
  list: { type: 'boolean', default: false },
  help: { type: 'boolean', default: false },
} as const;

const USAGE = `usage: npm run test:chaos -- [--only ROW,ROW] [--scale 0.01] [--seed N] [--write] [--list] [--help]
  --only   runs these rows (default: all)
  --scale  makes this share of each row's tries, at least one (default: 1)
  --seed   repeats a run (default: another seed each time)
  --write  writes test/chaos/RESULTS.md, as a run at scale 1 does anyway
  --list   names the rows and their tries`;

export async function main(argv: readonly string[]): Promise<number> {
  const plan = readPlan(argv);
  if (typeof plan === 'number') return plan;
  const { rows, scale, seed, write } = plan;
  console.log(`The seed is ${seed}. This repeats the run: npm run test:chaos -- --seed ${seed}`);
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

/** Returns what to run, or the exit code when there is nothing to run: the help, the list or a refusal has been printed. */
function readPlan(argv: readonly string[]): Plan | number {
  const refuse = (message: string): number => {
    console.error(`${message} --help says what there is.`);
    return EXIT.usage;
  };
  let values;
  try {
    ({ values } = parseArgs({ args: [...argv], options: OPTIONS }));
  } catch (error) {
    const [sentence] = (error as Error).message.split(/\. |\n/);
    return refuse(`${sentence.replace(/\.$/, '')}.`);
  }
  if (values.help) {
    console.log(USAGE);
    return EXIT.ok;
  }
  if (values.list) {
    for (const { name, title, tries } of ROWS) console.log(`${name.padEnd(6)} ${tries} x ${title}`);
    return EXIT.ok;
  }
  const names = values.only?.split(',').map((name) => name.trim());
  const unknown = names?.filter((name) => !ROWS.some((row) => row.name === name)) ?? [];
  if (unknown.length > 0) return refuse(`There is no row ${unknown.join(', ')}: --list names them all.`);
  const scale = Number(values.scale);
  if (!(scale > 0)) return refuse(`--scale is ${values.scale}: it must be a number above 0.`);
  const seed = values.seed === undefined ? Date.now() % 1_000_000 : Number(values.seed);
  if (!Number.isSafeInteger(seed)) return refuse(`--seed is ${values.seed}: it must be an integer.`);
  const rows = names === undefined ? ROWS : ROWS.filter(({ name }) => names.includes(name));
  return { rows, scale, seed, write: values.write || scale === 1 };
}
