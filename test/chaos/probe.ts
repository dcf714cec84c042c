// What rows see of a daemon from outside: resident memory and descriptors in /proc, the sizes of its files, and its database. The file
// also has the tiny model that most rows work with.

import { existsSync, readdirSync, readFileSync, rmSync, statSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import Database from 'better-sqlite3';
import { flagsOf, type DataHome } from '../e2e/daemon-fixture.ts';

export const MIB = 1 << 20;

export function residentBytes(pid: number): number {
  const kilobytes = /VmRSS:\s+(\d+) kB/.exec(readFileSync(`/proc/${pid}/status`, 'utf8'))?.[1];
  return Number(kilobytes) * 1024;
}

/** The environment with which a daemon answers `liveBytes`. Its heap is small, so that a large leak ends it. */
export const countedHeap = (home: DataHome): Readonly<Record<string, string>> => ({
  NODE_OPTIONS: `--max-old-space-size=128 --require ${path.resolve(import.meta.dirname, 'live-bytes.cjs')}`,
  GPTD_LIVE_BYTES: path.join(home.dir, 'live-bytes'),
});

/** Resolves to the bytes that the daemon's main thread holds after a collection of all garbage. */
export async function liveBytes(home: DataHome): Promise<number> {
  const file = path.join(home.dir, 'live-bytes');
  rmSync(file, { force: true });
  process.kill(home.daemon.pid, 'SIGUSR2');
  await waitUntil(() => existsSync(file), 'the daemon has counted what it holds');
  return Number(readFileSync(file, 'utf8'));
}

export const descriptorCount = (pid: number): number => readdirSync(`/proc/${pid}/fd`).length;

/** Returns the size of a file, or 0 when it is not there. */
export const fileBytes = (home: DataHome, name: string): number =>
  statSync(path.join(home.dir, name), { throwIfNoEntry: false })?.size ?? 0;

/** Returns the one value that a query finds, over a connection of its own that only reads. */
export function queried(home: DataHome, sql: string): unknown {
  const db = new Database(path.join(home.dir, 'gptd.db'), { readonly: true });
  try {
    return db.prepare(sql).pluck().get();
  } finally {
    db.close();
  }
}

export const TINY = { vocab_size: 256, context_length: 64, emb_dim: 16, n_heads: 2, n_layers: 1, drop_rate: 0 };

/** Makes a model with a byte tokenizer, which is so small that its steps cost nearly nothing. */
export async function makeModel(home: DataHome, fields: Partial<typeof TINY> = {}, name = 'm'): Promise<void> {
  await home.json(['create', name, ...flagsOf({ ...TINY, ...fields }), '--tokenizer', 'byte']);
}

/** Runs `work` for every number below `count`, `width` at a time. */
export async function inParallel(
  count: number,
  { width, work }: { readonly width: number; readonly work: (index: number) => Promise<void> },
): Promise<void> {
  let next = 0;
  const lane = async (): Promise<void> => {
    while (next < count) await work(next++);
  };
  await Promise.all(Array.from({ length: Math.min(width, count) }, lane));
}

export const percentile = (values: readonly number[], share: number): number =>
  [...values].sort((a, b) => a - b)[Math.min(values.length - 1, Math.floor(values.length * share))] ?? NaN;

const POLL_MS = 20;
const WAIT_MS_MAX = 10_000;

/** Looks again and again until `holds` returns true. Throws with `what` when it does not within `waitMs`. */
export async function waitUntil(holds: () => boolean, what: string, waitMs = WAIT_MS_MAX): Promise<void> {
  const startedAt = performance.now();
  while (!holds()) {
    if (performance.now() - startedAt > waitMs) throw new Error(`not within ${waitMs} ms: ${what}`);
    await new Promise((resolve) => setTimeout(resolve, POLL_MS));
  }
}
