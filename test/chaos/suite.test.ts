// Tests what the command line of the chaos suite says, and what it refuses.

import { spawnSync } from 'node:child_process';
import path from 'node:path';
import process from 'node:process';
import { expect, test } from 'vitest';
import { EXIT } from '../../src/cli/exit-codes.ts';

const run = (...flags: readonly string[]): { status: number | null; stdout: string; stderr: string } =>
  spawnSync(process.execPath, [path.join(import.meta.dirname, 'run.js'), ...flags], { encoding: 'utf8' });

test.each([
  ['--help', /^usage: .*--only ROW,ROW/],
  ['--list', /^R7 +200 x a database whose structure is damaged/m],
])('%s is answered, and nothing runs', (flag, said) => {
  const { status, stdout, stderr } = run(flag);
  expect([status, stderr]).toEqual([EXIT.ok, '']);
  expect(stdout).toMatch(said);
});

test.each([
  ['--nope', "Unknown option '--nope'. --help says what there is."],
  ['--seed=x', '--seed is x: it must be an integer. --help says what there is.'],
  ['--only=R7,R99', 'There is no row R99: --list names them all. --help says what there is.'],
])('%s is a usage error of one line', (flag, line) => {
  const { status, stdout, stderr } = run(flag);
  expect([status, stdout, stderr]).toEqual([EXIT.usage, '', `${line}\n`]);
});
