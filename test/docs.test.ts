// Checks that everything exists that the README and the guides name: commands, their flags, scripts and files.

import { existsSync, readdirSync, readFileSync } from 'node:fs';
import { describe, expect, test } from 'vitest';
import { runCli } from './cli/run-cli.ts';

const read = (file: string): string => readFileSync(new URL(`../${file}`, import.meta.url), 'utf8');
const readme = read('README.md');

/** Returns the calls of gptd in a text's console blocks. */
const callsOf = (text: string): { command: string; flags: string[] }[] =>
  [...text.matchAll(/^\$ gptd (\w+)(.*)$/gm)].map(([, command, rest]) => ({
    command,
    flags: [...rest.matchAll(/(?<= )--[a-z][a-z0-9-]*/g)].map(([flag]) => flag),
  }));
const calls = callsOf(readme);

describe('README', () => {
  test('shows commands', () => {
    expect(calls.length).toBeGreaterThan(5);
  });

  test.each(calls)('gptd $command $flags', async ({ command, flags }) => {
    const { exitCode, stdout } = await runCli([command, '--help']);
    expect(exitCode).toBe(0);
    for (const flag of flags) expect(stdout, flag).toContain(flag);
  });

  test('names every command of the program', async () => {
    const { stdout } = await runCli(['--help']);
    const commands = [...stdout.matchAll(/^ {2}([a-z]+)(?: |\|)/gm)]
      .map(([, name]) => name)
      .filter((name) => name !== 'help');
    expect(commands.length).toBeGreaterThan(12);
    for (const name of commands) expect(readme, name).toContain(`\`${name}\``);
  });

  test('names npm scripts that exist', () => {
    const { scripts } = JSON.parse(read('package.json')) as { scripts: Record<string, string> };
    const named = [...readme.matchAll(/npm run ([a-z:]+)/g)].map(([, name]) => name);
    expect(named.length).toBeGreaterThan(2);
    for (const name of named) expect(Object.keys(scripts)).toContain(name);
  });
});

describe.each(readdirSync(new URL('../docs/guide', import.meta.url)))('docs/guide/%s', (name) => {
  test('calls commands with flags that exist', async () => {
    for (const { command, flags } of callsOf(read(`docs/guide/${name}`))) {
      const { exitCode, stdout } = await runCli([command, '--help']);
      expect(exitCode).toBe(0);
      for (const flag of flags) expect(stdout, flag).toContain(flag);
    }
  });
});

test.each(['README.md', 'ARCHITECTURE.md'])('files that %s names exist', (file) => {
  const named = [...read(file).matchAll(/`((?:src|docs|bench|test|scripts|examples)\/[\w./-]*)`/g)].map(
    ([, path]) => path,
  );
  expect(named.length).toBeGreaterThan(0);
  for (const path of named) expect(existsSync(new URL(`../${path}`, import.meta.url)), path).toBe(true);
});
