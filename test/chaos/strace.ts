// strace is attached to a daemon that runs already. It writes every thread's system calls, lets the n-th of some calls fail, or kills
// the daemon in it. Debian has strace, and the kernel has to allow tracing to the user who runs this.

import { spawn, spawnSync, type ChildProcess } from 'node:child_process';

const mayTrace = spawnSync('strace', ['-e', 'trace=none', 'true']).status === 0;
/** The needs of a row that starts its daemon under strace. */
export const TRACED_START_NEEDS = ['strace', ...(mayTrace ? [] : ['the right to trace a process'])];

export class Strace {
  readonly #process: ChildProcess;
  readonly #ended: Promise<void>;

  private constructor(process: ChildProcess) {
    this.#process = process;
    this.#ended = new Promise((resolve) => process.once('close', () => resolve()));
  }

  /** Resolves when all threads of the process are followed. */
  static async attach(pid: number, args: readonly string[]): Promise<Strace> {
    const child = spawn('strace', ['-f', ...args, '-p', String(pid)], { stdio: ['ignore', 'ignore', 'pipe'] });
    const strace = new Strace(child);
    let said = '';
    await new Promise<void>((resolve, reject) => {
      child.stderr.setEncoding('utf8').on('data', (text: string) => {
        said += text;
        if (/ attached( with \d+ threads)?\n/.test(said)) resolve();
      });
      child.once('error', reject);
      void strace.#ended.then(() => reject(new Error(`strace ended: ${said}`)));
    });
    return strace;
  }

  /** Ends strace; a traced process that still runs goes on. May be called twice. */
  async detach(): Promise<void> {
    this.#process.kill('SIGINT');
    await this.#ended;
  }
}
