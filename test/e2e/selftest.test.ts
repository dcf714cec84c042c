// Runs `gptd selftest` as a user does, on both engines. It also runs on copies of the built program with a fault in each, because
// a self-test that cannot fail says nothing.

import { execFile } from 'node:child_process';
import { cpSync, mkdirSync, mkdtempSync, readdirSync, readFileSync, rmSync, symlinkSync, writeFileSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import { afterAll, describe, expect, test } from 'vitest';
import type { SelftestReport } from '../../src/offline/selftest.ts';

const ROOT = path.resolve(import.meta.dirname, '../..');
const CHECKS = ['attention', 'gradients', 'checkpoint', 'training', 'workers'];

const folder = mkdtempSync(path.join(os.tmpdir(), 'gptd-faulty-'));
afterAll(() => rmSync(folder, { recursive: true }));

/**
 * Runs a built program's selftest with a temporary directory of its own. Resolves to its exit code, its output and the files that
 * are left in that directory. ONNX Runtime's files about reports to its maker would be among them.
 */
function selftest(dist: string, flags: readonly string[]): Promise<{ code: number; stdout: string; left: string[] }> {
  const temporary = mkdtempSync(path.join(folder, 'tmp-'));
  const env: NodeJS.ProcessEnv = { ...process.env, TMPDIR: temporary, TEMP: temporary };
  delete env['ORT_DISABLE_TELEMETRY'];
  return new Promise((resolve) => {
    const args = [path.join(dist, 'cli', 'main.js'), 'selftest', ...flags];
    execFile(process.execPath, args, { env }, (error, stdout) => {
      resolve({
        code: error === null ? 0 : Number(error.code),
        stdout,
        left: readdirSync(temporary),
      });
    });
  });
}

describe('the built program', () => {
  test.each(['onnx', 'tensorflow'])('passes on %s, within 20 seconds and leaving nothing behind', async (engine) => {
    const { code, stdout, left } = await selftest(path.join(ROOT, 'dist'), ['--engine', engine, '--json']);
    const report = JSON.parse(stdout) as SelftestReport;
    expect(report.checks.map(({ name, ok }) => [name, ok])).toEqual(CHECKS.map((name) => [name, true]));
    expect(report).toMatchObject({ ok: true, engine: { name: engine } });
    expect(report.elapsedMs).toBeLessThan(20_000);
    expect({ code, left }).toEqual({ code: 0, left: [] });
  });

  test('prints a row for each check', async () => {
    const { code, stdout } = await selftest(path.join(ROOT, 'dist'), []);
    expect(stdout).toMatch(/^gptd \S+ on onnx \S+ \(.*\)\nok {4}attention .*\nok {4}gradients .*\n/);
    expect(stdout).toMatch(/\nAll checks passed in \d+\.\d s\.\n$/);
    expect(code).toBe(0);
  });
});

interface Fault {
  readonly what: string;
  readonly file: string;
  readonly from: string | RegExp;
  readonly to: string;
  /** The checks that must find the fault. */
  readonly failing: readonly string[];
}

const FAULTS: readonly Fault[] = [
  {
    what: 'a mask that hides nothing',
    file: 'model/programs/attention.js',
    from: /-Infinity/g,
    to: '0',
    failing: ['attention', 'training'],
  },
  {
    what: 'a wrong derivative',
    file: 'model/programs/embedding.js',
    from: 'addRow(dwpe, (row % T) * D',
    to: 'addRow(dwpe, 0 * D',
    failing: ['gradients', 'training'],
  },
  {
    what: 'a draw that follows the layout',
    file: 'workers/training/masks.js',
    from: 'block * batchSize',
    to: '(block - arguments[0].stage.firstBlock) * batchSize',
    failing: ['workers'],
  },
  {
    what: 'a store that loses a checkpoint',
    file: 'offline/selftest-writer.js',
    from: "store.call('beginCheckpoint'",
    to: "(await store.call('deleteModel', { name: model }), store).call('beginCheckpoint'",
    failing: ['checkpoint'],
  },
];

test.each(FAULTS)('$what is found', async ({ what, file, from, to, failing }) => {
  const copy = path.join(folder, what.replaceAll(' ', '-'));
  mkdirSync(copy);
  cpSync(path.join(ROOT, 'dist'), path.join(copy, 'dist'), { recursive: true });
  cpSync(path.join(ROOT, 'package.json'), path.join(copy, 'package.json'));
  symlinkSync(path.join(ROOT, 'node_modules'), path.join(copy, 'node_modules'));
  const faulty = path.join(copy, 'dist', file);
  const text = readFileSync(faulty, 'utf8');
  const changed = text.replace(from, to);
  expect(changed).not.toBe(text);
  writeFileSync(faulty, changed);
  const { code, stdout, left } = await selftest(path.join(copy, 'dist'), ['--json']);
  const report = JSON.parse(stdout) as SelftestReport;
  expect(report.checks.filter(({ ok }) => !ok).map(({ name }) => name)).toEqual(expect.arrayContaining([...failing]));
  expect({ code, ok: report.ok, left }).toEqual({ code: 1, ok: false, left: [] });
});
