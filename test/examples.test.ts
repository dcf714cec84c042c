// Checks the examples for operators: everything that the unit and the container file name exists, systemd accepts the unit, and
// the unit's filter of system calls lets a daemon do all of its work.

import { spawnSync } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { expect, onTestFinished, test } from 'vitest';
import { missingPrograms } from './chaos/row.ts';
import { makeModel, submit, wholeLog } from './chaos/training.ts';
import { runCli } from './cli/run-cli.ts';
import { DataHome } from './e2e/daemon-fixture.ts';

const ROOT = fileURLToPath(new URL('..', import.meta.url));
const unit = readFileSync(path.join(ROOT, 'examples/gptd.service'), 'utf8');
const containerFile = readFileSync(path.join(ROOT, 'examples/Containerfile'), 'utf8');
const EXPOSURE_MAX = 2;

/** Whether the programs are installed; prints a line when they are not. */
function have(...needs: readonly string[]): boolean {
  const missing = missingPrograms({ needs });
  if (missing.length > 0) console.warn(`Not checked, as these are not installed: ${missing.join(', ')}.`);
  return missing.length === 0;
}

/** Returns the values that the unit gives a setting, in order. */
const settings = (name: string): string[] =>
  [...unit.matchAll(new RegExp(`^${name}=(.*)$`, 'gm'))].map(([, value]) => value);

test('both start the daemon with flags that it has', async () => {
  const { stdout: help } = await runCli(['start', '--help']);
  const [exec] = settings('ExecStart');
  const command = /^CMD (\[.*\])$/m.exec(containerFile)?.[1] ?? '[]';
  for (const words of [exec.split(' '), JSON.parse(command) as string[]]) {
    expect(words.slice(0, 2)).toEqual([expect.stringMatching(/(^|\/)gptd$/), 'start']);
    const flags = words.filter((word) => word.startsWith('--'));
    expect(flags.length).toBeGreaterThan(0);
    for (const flag of flags) expect(help).toContain(`${flag} <`);
  }
});

test('the container file copies files that exist, onto a Node that the package supports', () => {
  const copies = [...containerFile.matchAll(/^COPY (?!--from)(.*) \S+$/gm)].flatMap(([, files]) => files.split(' '));
  expect(copies).toContain('package-lock.json');
  for (const file of copies) expect(existsSync(path.join(ROOT, file)), file).toBe(true);
  const images = [...containerFile.matchAll(/^FROM node:(\d+)-\S+/gm)].map(([, major]) => Number(major));
  expect(images).toEqual([22, 22]);
  expect(readFileSync(path.join(ROOT, 'package.json'), 'utf8')).toContain('"node": ">=20.19"');
});

test('systemd accepts the unit, and rates its exposure at most 2 of 10', () => {
  if (!have('systemd-analyze')) return;
  const dir = mkdtempSync(path.join(tmpdir(), 'gptd-unit-'));
  onTestFinished(() => rmSync(dir, { recursive: true }));
  // systemd wants the program that the unit starts to exist.
  const file = path.join(dir, 'gptd.service');
  writeFileSync(file, unit.replace('/usr/local/bin/gptd', process.execPath));
  const verified = spawnSync('systemd-analyze', ['verify', file], { encoding: 'utf8' });
  expect([verified.status, verified.stderr]).toEqual([0, '']);
  const rated = spawnSync('systemd-analyze', ['security', '--offline=yes', file], { encoding: 'utf8' });
  const exposure = Number(/Overall exposure level for gptd\.service: ([\d.]+)/.exec(rated.stdout)?.[1]);
  expect(exposure).toBeLessThanOrEqual(EXPOSURE_MAX);
});

/** Returns a function that resolves the name of a set, as systemd knows it, to its system calls. */
function systemdSets(): (name: string) => Set<string> {
  const { stdout } = spawnSync('systemd-analyze', ['syscall-filter'], { encoding: 'utf8' });
  const members = new Map<string, string[]>();
  let current: string[] = [];
  for (const line of stdout.split('\n')) {
    if (line.startsWith('@')) members.set(line.trim(), (current = []));
    else if (/^ +[@a-z_]/.test(line)) current.push(line.trim());
  }
  const expand = (name: string): string[] =>
    name.startsWith('@') ? (members.get(name) ?? []).flatMap((member) => expand(member)) : [name];
  return (name) => new Set(expand(name));
}

test('the filter of system calls lets a daemon create, train, generate, export and stop', async () => {
  if (!have('systemd-analyze', 'strace')) return;
  const expand = systemdSets();
  const allowed = new Set<string>();
  for (const filter of settings('SystemCallFilter')) {
    for (const name of filter.replace('~', '').split(' '))
      for (const call of expand(name)) allowed[filter.startsWith('~') ? 'delete' : 'add'](call);
  }
  expect(allowed.size).toBeGreaterThan(200);

  const home = new DataHome();
  onTestFinished(() => home.close());
  const counts = path.join(home.dir, 'counts');
  await home.start({ workers: 2, under: ['strace', '-f', '-c', '-o', counts] });
  await makeModel(home, 'm');
  await wholeLog(home, (await submit(home, 'm', { steps: 3 }))!);
  const client = await home.connect();
  await client.follow('generate', { model: 'm', prompt: 'Line', maxTokens: 3 });
  await client.follow('export', { model: 'm', format: 'gguf' });
  client.close();
  expect(await home.signal('SIGTERM')).toBe(0);
  const called = readFileSync(counts, 'utf8')
    .split('\n')
    .map((line) => /^\s*[\d.]+\s+[\d.]+\s+\d+\s+\d+\s+(?:\d+\s+)?(\w+)$/.exec(line)?.[1])
    .filter((name) => name !== undefined && name !== 'total');
  expect(called).toContain('fsync');
  // SQLite gives its files to the directory's owner when it runs as root, which the service does not.
  const asRoot = process.geteuid?.() === 0 ? ['fchown'] : [];
  expect(called.filter((name) => !allowed.has(name!) && !asRoot.includes(name!))).toEqual([]);
});
