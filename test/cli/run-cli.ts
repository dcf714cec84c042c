// Runs the built command as a user would, with nothing of this machine's own configuration.

import { spawn, type ChildProcess } from 'node:child_process';
import { fileURLToPath } from 'node:url';

export const MAIN_FILE = fileURLToPath(new URL('../../dist/cli/main.js', import.meta.url));

export interface CliRun {
  readonly exitCode: number | null;
  readonly stdout: string;
  readonly stderr: string;
}

export interface RunningCli {
  readonly child: ChildProcess;
  /** Resolves once stdout or stderr holds `text`. Rejects when the command ends before. */
  said(text: string): Promise<void>;
  readonly ended: Promise<CliRun>;
}

/** Starts the command. `under` is a command that runs it, such as `['strace', '-f']`. */
export function startCli(
  args: readonly string[],
  env: Readonly<Record<string, string>> = {},
  { under = [] }: { readonly under?: readonly string[] } = {},
): RunningCli {
  const [file, ...rest] = [...under, process.execPath, MAIN_FILE, ...args];
  const child = spawn(file, rest, {
    env: { PATH: process.env['PATH'], HOME: '/nonexistent', ...env },
    stdio: ['ignore', 'pipe', 'pipe'],
  });
  let stdout = '';
  let stderr = '';
  const watchers = new Set<() => void>();
  const isSaid = (text: string): boolean => stdout.includes(text) || stderr.includes(text);
  child.stdout.setEncoding('utf8').on('data', (text: string) => {
    stdout += text;
    for (const watch of watchers) watch();
  });
  child.stderr.setEncoding('utf8').on('data', (text: string) => {
    stderr += text;
    for (const watch of watchers) watch();
  });
  const ended = new Promise<CliRun>((resolve, reject) => {
    child.once('error', reject);
    child.once('close', (exitCode) => resolve({ exitCode, stdout, stderr }));
  });
  const said = (text: string): Promise<void> =>
    new Promise((resolve, reject) => {
      const watch = (): void => {
        if (isSaid(text)) resolve();
      };
      watchers.add(watch);
      watch();
      void ended.then(() => reject(new Error(`The command ended without saying "${text}": ${stdout}${stderr}`)));
    });
  return { child, said, ended };
}

export const runCli = (args: readonly string[], env: Readonly<Record<string, string>> = {}): Promise<CliRun> =>
  startCli(args, env).ended;
