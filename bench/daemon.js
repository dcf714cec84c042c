// Starts a real daemon for a benchmark: the built program runs in a temporary data directory, and the benchmark drives it through
// the CLI as a user would.

import { execFile, spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';

const CLI = fileURLToPath(new URL('../dist/cli/main.js', import.meta.url));
const BUSY = fileURLToPath(new URL('busy.cjs', import.meta.url));
const OUTPUT_BYTES_MAX = 256 << 20;
const run = promisify(execFile);

/**
 * Starts a daemon. `cli(...args)` resolves to a command's standard output, `events(...args)` to its job events. With `timed` the
 * daemon notes when its engine runs and when its stages wait: `busy()` returns `{thread, kind, begin, end}` of every `run` and
 * `wait`, in milliseconds since 1970.
 */
export async function startDaemon(workers, { timed = false } = {}) {
  const folder = mkdtempSync(path.join(tmpdir(), 'gptd-bench-'));
  const dataDir = path.join(folder, 'data');
  const busyLog = path.join(folder, 'busy.log');
  const preload = timed ? ['--require', BUSY] : [];
  const env = timed ? { ...process.env, GPTD_BUSY_LOG: busyLog } : process.env;
  const args = ['start', '--data-dir', dataDir, '--port', '0', '--workers', String(workers), '--log-level', 'warn'];
  const daemon = spawn(process.execPath, [...preload, CLI, ...args], { env, stdio: ['ignore', 'ignore', 'inherit'] });
  const ended = new Promise((resolve) => daemon.once('exit', resolve));
  while (!existsSync(path.join(dataDir, 'daemon.json'))) {
    if (daemon.exitCode !== null) throw new Error(`the daemon ended with ${daemon.exitCode}`);
    await delay(50);
  }
  const cli = async (...words) =>
    (await run(process.execPath, [CLI, ...words, '--data-dir', dataDir], { maxBuffer: OUTPUT_BYTES_MAX })).stdout;
  return {
    folder,
    pid: daemon.pid,
    cli,
    address: () => ({
      url: JSON.parse(readFileSync(path.join(dataDir, 'daemon.json'), 'utf8')).url,
      token: readFileSync(path.join(dataDir, 'token'), 'utf8').trim(),
    }),
    events: async (...words) =>
      (await cli(...words, '--json'))
        .trim()
        .split('\n')
        .map((line) => JSON.parse(line)),
    busy: () =>
      readFileSync(busyLog, 'utf8')
        .trimEnd()
        .split('\n')
        .map((line) => line.split(' '))
        .map(([thread, kind, begin, end]) => ({ thread, kind, begin: Number(begin), end: Number(end) })),
    /** Returns the largest resident size so far, in bytes, or 0 where the system does not report it. */
    peakBytes: () => {
      const status = `/proc/${daemon.pid}/status`;
      return existsSync(status) ? Number(/VmHWM:\s+(\d+)/.exec(readFileSync(status, 'utf8'))?.[1] ?? 0) * 1024 : 0;
    },
    stop: async () => {
      daemon.kill('SIGTERM');
      await ended;
      rmSync(folder, { recursive: true, force: true });
    },
  };
}

/** Runs `use` with a daemon, and stops the daemon even when `use` fails. */
export async function withDaemon(workers, use, options) {
  const daemon = await startDaemon(workers, options);
  try {
    return await use(daemon);
  } finally {
    await daemon.stop();
  }
}

/** Returns the words of a command line, with a flag for each entry. */
export const flagsOf = (values) => Object.entries(values).flatMap(([flag, value]) => [`--${flag}`, String(value)]);

/** Makes a model without dropout. */
export async function createModel(daemon, name, { vocab, context, width, heads, layers, tokenizer }) {
  const shape = { 'vocab-size': vocab, 'context-length': context, 'emb-dim': width, 'n-heads': heads };
  await daemon.cli('create', name, ...flagsOf({ ...shape, 'n-layers': layers, 'drop-rate': 0, tokenizer }));
}

export const median = (values) => values.toSorted((a, b) => a - b)[values.length >> 1];
