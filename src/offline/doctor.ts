// `gptd doctor` looks at the machine, the engine, and the data directory, which it only reads. Each finding says what was seen
// and, when that is a fault, what to do about it. A running daemon is asked for nothing but a sign of life.

import { accessSync, constants, existsSync, readFileSync, statfsSync, statSync } from 'node:fs';
import { createServer } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import Database from 'better-sqlite3';
import { TOKEN_CHARACTERS_MIN } from '../daemon/edge/access.ts';
import { GraphBuilder } from '../model/programs/graph.ts';
import { loadEngine } from '../workers/engines/choice.ts';
import type { EngineChoice } from '../workers/settings.ts';
import { MIGRATIONS } from '../workers/store/migrations.ts';
import { schemaFault, SQLITE_VERSION_MIN } from '../workers/store/schema.ts';

export interface Finding {
  readonly name: string;
  readonly ok: boolean;
  /** Says what was seen. */
  readonly detail: string;
  /** Says what to do; null when nothing is wrong. */
  readonly advice: string | null;
}

export interface DoctorOptions {
  readonly dataDir: string;
  readonly host: string;
  readonly port: number;
  readonly engine: EngineChoice;
}

const NODE_VERSION_MIN = '20.19.0';
const MEMORY_BYTES_MIN = 2e9;
const DISK_BYTES_MIN = 1e9;
const HEALTH_TIMEOUT_MS = 2000;

type Seen = Omit<Finding, 'name'>;
const fine = (detail: string): Seen => ({ ok: true, detail, advice: null });
const fault = (detail: string, advice: string): Seen => ({ ok: false, detail, advice });
const gigabytes = (bytes: number): string => `${(bytes / 1e9).toFixed(1)} GB`;

/** Makes every check, in order. None of them stops the others. */
export async function examine(options: DoctorOptions): Promise<Finding[]> {
  const checks: readonly (readonly [name: string, look: () => Seen | Promise<Seen>])[] = [
    ['node', lookAtNode],
    ['machine', lookAtMachine],
    ['engine', () => lookAtEngine(options.engine)],
    ['sqlite', lookAtSqlite],
    ['data directory', () => lookAtDirectory(options.dataDir)],
    ['token', () => lookAtToken(options)],
    ['database', () => lookAtDatabase(options.dataDir)],
    ['disk', () => lookAtDisk(options.dataDir)],
    ['port', () => lookAtPort(options)],
  ];
  const findings: Finding[] = [];
  for (const [name, look] of checks) {
    try {
      findings.push({ name, ...(await look()) });
    } catch (error) {
      const detail = error instanceof Error ? error.message : String(error);
      findings.push({ name, ...fault(detail, 'Mend what the message names, then run "gptd doctor" again.') });
    }
  }
  return findings;
}

function lookAtNode(): Seen {
  const version = process.versions.node;
  return versionAtLeast(version, NODE_VERSION_MIN)
    ? fine(`Node.js ${version}`)
    : fault(`Node.js ${version}`, `Install Node.js ${NODE_VERSION_MIN} or later.`);
}

function lookAtMachine(): Seen {
  const cpu = os.cpus().at(0);
  const memory = Math.min(os.totalmem(), process.constrainedMemory() || Infinity);
  const detail = `${os.availableParallelism()} cores (${cpu?.model.trim() ?? 'unknown'}), ${gigabytes(memory)} of memory, ${process.platform} ${process.arch}`;
  return memory >= MEMORY_BYTES_MIN
    ? fine(detail)
    : fault(detail, `Only small models fit: give the process at least ${gigabytes(MEMORY_BYTES_MIN)}.`);
}

/** Loads the engine and multiplies two matrices whose product is known. */
async function lookAtEngine(choice: EngineChoice): Promise<Seen> {
  const engine = await loadEngine(choice);
  const g = new GraphBuilder('doctor');
  g.output('y', g.node('Gemm', [g.input('x', [2, 2]), g.constant(Float32Array.of(1, 2, 3, 4), [2, 2])]));
  const program = await engine.compile(g.build());
  const { y } = await program.run({ x: { data: Float32Array.of(1, 0, 1, 1), dims: [2, 2] } });
  await program.release();
  return y.join() === '1,2,4,6'
    ? fine(`${engine.fingerprint} computes`)
    : fault(`${engine.fingerprint} gave ${y.join()} instead of 1,2,4,6`, 'Install the dependencies again (npm ci).');
}

function lookAtSqlite(): Seen {
  const db = new Database(':memory:');
  const version = db.prepare('SELECT sqlite_version()').pluck().get() as string;
  db.close();
  return versionAtLeast(version, SQLITE_VERSION_MIN)
    ? fine(`SQLite ${version}`)
    : fault(`SQLite ${version}`, `Install better-sqlite3 again: SQLite ${SQLITE_VERSION_MIN} is needed.`);
}

function lookAtDirectory(dataDir: string): Seen {
  if (!existsSync(dataDir)) return fine(`${dataDir} is not there yet: "gptd start" makes it`);
  const { mode } = statSync(dataDir);
  try {
    accessSync(dataDir, constants.R_OK | constants.W_OK | constants.X_OK);
  } catch {
    return fault(`${dataDir} cannot be written`, `Give this user the directory: chown -R "$USER" ${dataDir}`);
  }
  return (mode & 0o022) === 0
    ? fine(`${dataDir} can be written`)
    : fault(`${dataDir} can be written by others`, `Take that permission away: chmod go-w ${dataDir}`);
}

function lookAtToken({ dataDir }: DoctorOptions): Seen {
  const file = path.join(dataDir, 'token');
  if (!existsSync(file)) return fine('not there yet: the first start makes it');
  if ((statSync(file).mode & 0o077) !== 0) {
    return fault(`${file} can be read by others`, `chmod 600 ${file}, or delete it for a new one at the next start.`);
  }
  const { length } = readFileSync(file, 'utf8').trim();
  return length < TOKEN_CHARACTERS_MIN
    ? fault(
        `${file} holds ${length} characters, and "gptd start" wants at least ${TOKEN_CHARACTERS_MIN}`,
        'Delete it: the next start makes a new one.',
      )
    : fine('only its owner can read it');
}

function lookAtDatabase(dataDir: string): Seen {
  const file = path.join(dataDir, 'gptd.db');
  if (!existsSync(file)) return fine('not there yet');
  const restore =
    `Stop the daemon, keep ${file} and its -wal and -shm files aside, and put the newest copy of gptd.db in their place` +
    '; without a copy, start on an empty data directory and import exported weights.';
  let db;
  try {
    db = new Database(file, { readonly: true, fileMustExist: true });
    const version = db.pragma('user_version', { simple: true }) as number;
    const found = db.pragma('quick_check(1)', { simple: true }) as string;
    if (found !== 'ok') return fault(`${file} is damaged: ${found}`, restore);
    const detail = `${gigabytes(statSync(file).size)}, version ${version}, whole`;
    if (version > MIGRATIONS.length) {
      return fault(`${detail}, made by a newer gptd`, 'Install the newer gptd, or use another data directory.');
    }
    const wrong = schemaFault(db);
    return wrong === null ? fine(detail) : fault(`${file} is damaged: ${wrong}`, restore);
  } catch (error) {
    return fault(`${file} cannot be read: ${(error as Error).message}`, restore);
  } finally {
    db?.close();
  }
}

function lookAtDisk(dataDir: string): Seen {
  let there = dataDir;
  while (!existsSync(there)) there = path.dirname(there);
  const { bavail, bsize } = statfsSync(there);
  const free = bavail * bsize;
  return free >= DISK_BYTES_MIN
    ? fine(`${gigabytes(free)} free`)
    : fault(
        `${gigabytes(free)} free`,
        'Free some space: jobs pause when a checkpoint does not fit. "gptd models rm" helps.',
      );
}

async function lookAtPort({ dataDir, host, port }: DoctorOptions): Promise<Seen> {
  const announced = path.join(dataDir, 'daemon.json');
  if (existsSync(announced)) {
    const { url, pid } = JSON.parse(readFileSync(announced, 'utf8')) as { url: string; pid: number };
    const alive = await fetch(`${url}/healthz`, { signal: AbortSignal.timeout(HEALTH_TIMEOUT_MS) }).then(
      ({ ok }) => ok,
      () => false,
    );
    return alive
      ? fine(`a daemon answers at ${url} (pid ${pid})`)
      : fault(
          `no daemon answers at ${url}, which daemon.json names`,
          'The daemon was killed: "gptd start" takes up its jobs.',
        );
  }
  const code = await new Promise<string | null>((resolve) => {
    const server = createServer();
    server.once('error', (error: NodeJS.ErrnoException) => resolve(error.code ?? 'unknown'));
    server.listen({ host, port }, () => server.close(() => resolve(null)));
  });
  return code === null
    ? fine(`${host}:${port} is free; no daemon runs`)
    : fault(`${host}:${port} cannot be listened on: ${code}`, 'Start with another --port, or 0 for a free one.');
}

function versionAtLeast(version: string, least: string): boolean {
  const [have, want] = [version, least].map((text) => text.split('.').map(Number));
  const first = want.findIndex((part, i) => have[i] !== part);
  return first < 0 || have[first] > want[first];
}
