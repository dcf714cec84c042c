// Checks what a benchmark prints.

import { spawnSync } from 'node:child_process';
import path from 'node:path';
import process from 'node:process';
import { expect, test } from 'vitest';

test("the bench tells the machine's limits once before the work and once after it", () => {
  const script = path.resolve(import.meta.dirname, '../bench/run.js');
  const { status, stdout } = spawnSync(process.execPath, [script, '--tiny', '--only', 'train'], { encoding: 'utf8' });
  expect(status).toBe(0);
  const limits = stdout.split('\n').filter((line) => / GFLOPS /.test(line));
  expect(limits).toEqual([expect.stringMatching(/^machine, before: /), expect.stringMatching(/^machine, after: /)]);
  expect(stdout).toMatch(/^train tiny: .* % of the peak; /m);
}, 60_000);
