// Runs the short form of the chaos suite's rows with one seed: a few tries of each attack, so that none of them can rot. Rows whose
// `short` is 0 are left out.

import { expect, test } from 'vitest';
import { Random } from './random.ts';
import { missingPrograms, runRow } from './row.ts';
import { ROWS } from './rows.ts';

const SEED = 1;

test.each(ROWS.filter(({ short }) => short > 0).map((row) => [row.name, row.title, row] as const))(
  '%s: %s',
  async (_name, _title, row) => {
    const missing = missingPrograms(row);
    if (missing.length > 0) {
      console.warn(`${row.name} did not run: not installed: ${missing.join(', ')}. See scripts/chaos-tools.sh.`);
      return;
    }
    const { tries, failures, notes } = await runRow(row, {
      tries: row.short,
      random: new Random(SEED, row.name),
    });
    expect(failures, notes.join('\n')).toBe(0);
    expect(tries).toBeGreaterThan(0);
  },
  120_000,
);
