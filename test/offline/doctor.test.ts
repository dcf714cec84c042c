// Runs `gptd doctor` on data directories with and without faults: it names every fault, says what to do, and changes nothing.

import { chmodSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { afterEach, beforeEach, expect, test } from 'vitest';
import { EXIT } from '../../src/cli/exit-codes.ts';
import { startCli } from '../cli/run-cli.ts';

interface Report {
  readonly ok: boolean;
  readonly findings: readonly { name: string; ok: boolean; detail: string; advice: string | null }[];
}

let dir: string;
beforeEach(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'gptd-doctor-'));
});
afterEach(() => rmSync(dir, { recursive: true, force: true }));

async function examine(): Promise<{ report: Report; exitCode: number | null }> {
  const run = await startCli(['doctor', '--json', '--port', '0', '--data-dir', dir]).ended;
  return { report: JSON.parse(run.stdout) as Report, exitCode: run.exitCode };
}
const faults = ({ findings }: Report): string[] => findings.filter(({ ok }) => !ok).map(({ name }) => name);

test('finds nothing wrong with an empty directory', async () => {
  const { report, exitCode } = await examine();
  expect(faults(report)).toEqual([]);
  expect(report.findings.map(({ name }) => name)).toContain('engine');
  expect([report.ok, exitCode]).toEqual([true, EXIT.ok]);
});

test.each(['', 'x', 'fifteen-letters'])('reports the token %j, which "gptd start" refuses', async (token) => {
  writeFileSync(path.join(dir, 'token'), `${token}\n`, { mode: 0o600 });
  const { report } = await examine();
  expect(faults(report)).toEqual(['token']);
  expect(report.findings.find(({ name }) => name === 'token')?.detail).toContain(`holds ${token.length} characters`);
});

test('finds nothing wrong with a token of sixteen characters', async () => {
  writeFileSync(path.join(dir, 'token'), 'sixteen-letters!\n', { mode: 0o600 });
  const { report } = await examine();
  expect(faults(report)).toEqual([]);
});

test('names each fault with what to do, and leaves a damaged database as it is', async () => {
  const database = path.join(dir, 'gptd.db');
  writeFileSync(database, 'this is no database at all, but it is long enough to have a header. '.repeat(20));
  const before = readFileSync(database);
  writeFileSync(path.join(dir, 'token'), 'secret', { mode: 0o644 });
  chmodSync(path.join(dir, 'token'), 0o644);
  writeFileSync(path.join(dir, 'daemon.json'), JSON.stringify({ pid: 1, url: 'http://127.0.0.1:9', version: '0' }));
  chmodSync(dir, 0o777);
  const { report, exitCode } = await examine();
  expect(faults(report)).toEqual(['data directory', 'token', 'database', 'port']);
  for (const { ok, advice } of report.findings) expect(advice === null).toBe(ok);
  expect(JSON.stringify(report)).not.toContain('secret');
  expect(exitCode).toBe(EXIT.jobFailed);
  expect(readFileSync(database).equals(before)).toBe(true);
});
