// Writes RESULTS.md, which has one line for the last run of each row. A run of some rows replaces their lines and leaves the others
// as they are.

import { existsSync, readFileSync, writeFileSync } from 'node:fs';
import type { Outcome, Row } from './row.ts';
import { ROWS } from './rows.ts';

export type Line =
  | { readonly row: Row; readonly ran: false; readonly why: string }
  | {
      readonly row: Row;
      readonly ran: true;
      readonly seed: number;
      readonly outcome: Outcome;
      readonly seconds: number;
    };

const FILE = new URL('RESULTS.md', import.meta.url);
const HEAD = `# Results of the chaos suite

The table has the last run of every row by \`npm run test:chaos\`, against the built daemon. \`of\` is the row's full count: a run with fewer tries was scaled. A row
that did not run has not passed.

| row | promise | tries | of | failures | seconds | seed | date |
| --- | --- | --- | --- | --- | --- | --- | --- |
`;

export function writeResults(lines: readonly Line[]): void {
  const known = new Map(
    (existsSync(FILE) ? readFileSync(FILE, 'utf8') : '')
      .split('\n')
      .map((text): [string, string] => [/^\| (\S+)\s*\|/.exec(text)?.[1] ?? '', text]),
  );
  for (const line of lines) known.set(line.row.name, rendered(line));
  const table = ROWS.flatMap(({ name }) => known.get(name) ?? []);
  writeFileSync(FILE, `${HEAD}${table.join('\n')}\n`);
}

function rendered(line: Line): string {
  const { name, title, tries } = line.row;
  const date = new Date().toISOString().slice(0, 10);
  const cells = line.ran
    ? [line.outcome.tries, tries, line.outcome.failures, line.seconds.toFixed(1), line.seed]
    : [`did not run: ${line.why}`, tries, '', '', ''];
  return `| ${[name, title, ...cells, date].join(' | ')} |`;
}
