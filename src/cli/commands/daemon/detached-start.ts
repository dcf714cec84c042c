// `gptd start --detach`: runs the same program again as a process in its own session, with its output in DATA/daemon.log. The
// command returns when that daemon answers, or reports why it ended.

import { spawn, type ChildProcess } from 'node:child_process';
import { mkdir, open, readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import type { DaemonFile } from '../../../daemon/protocol/daemon.ts';
import { readDaemonFile } from '../../client/data-directory.ts';
import { answersHealth } from '../../client/health.ts';
import { dataDirOf, givenToken } from '../../connection.ts';
import type { CliContext } from '../../context.ts';
import { CliError, EXIT } from '../../exit-codes.ts';
import { announceReady, startArguments, type StartFlags } from './start-flags.ts';

const READY_MS_MAX = 120_000;
const POLL_MS = 50;
/** The number of the log's last lines that are told when a daemon ended. */
const LOG_LINES_TOLD = 5;

/** Resolves to the exit code. Throws an error with the daemon's exit code when the daemon ends before it is ready. */
export async function startDetached(flags: StartFlags, context: CliContext): Promise<number> {
  const dataDir = dataDirOf(flags, context);
  await mkdir(dataDir, { recursive: true, mode: 0o700 });
  const logFile = join(dataDir, 'daemon.log');
  const log = await open(logFile, 'a', 0o600);
  const token = givenToken(flags, context);
  try {
    const { size: logStartBytes } = await log.stat();
    const child = spawn(process.execPath, [context.mainFile, ...startArguments(flags, dataDir)], {
      detached: true,
      stdio: ['ignore', log.fd, log.fd],
      env: { ...context.env, ...(token === undefined ? {} : { GPTD_TOKEN: token }) },
    });
    const ready = await untilReady(child, dataDir);
    if (typeof ready === 'object') {
      child.unref();
      announceReady(ready, { json: flags.json === true, context });
      return EXIT.ok;
    }
    const said = (await readFile(logFile)).subarray(logStartBytes).toString('utf8').trim();
    // The daemon tells in sentences why it ended, while the lines of the log itself are JSON.
    const sentences = said.split('\n').filter((line) => !line.startsWith('{'));
    const lastLines = sentences.slice(-LOG_LINES_TOLD).join(' ').replaceAll('gptd: ', '');
    throw new CliError(
      ready,
      `The daemon ended with exit code ${ready}: ${lastLines === '' ? 'it said nothing' : lastLines}`,
    );
  } finally {
    await log.close();
  }
}

/** Resolves to what the ready daemon announced, or to the exit code of a daemon that ended. */
async function untilReady(child: ChildProcess, dataDir: string): Promise<DaemonFile | number> {
  const ended = new Promise<number>((resolve, reject) => {
    child.once('error', reject);
    // A process that a signal ended has no exit code.
    child.once('exit', (code) => resolve(code ?? EXIT.jobFailed));
  });
  const deadlineMs = performance.now() + READY_MS_MAX;
  while (performance.now() < deadlineMs) {
    const exitCode = await Promise.race([ended, delay(POLL_MS)]);
    // A daemon that was told to stop at once has ended without a fault, but nobody can use it.
    if (exitCode !== undefined) return exitCode === EXIT.ok ? EXIT.jobFailed : exitCode;
    const announced = await readDaemonFile(dataDir);
    if (announced?.pid === child.pid && announced !== undefined && (await answersHealth(announced.url)))
      return announced;
  }
  child.kill('SIGTERM');
  throw new CliError(
    EXIT.jobFailed,
    `The daemon was not ready within ${READY_MS_MAX / 1000} s and was stopped: see daemon.log in ${dataDir}.`,
  );
}
