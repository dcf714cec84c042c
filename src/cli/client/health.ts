// Whether a daemon answers, and whether a process still runs. Starting and stopping a daemon ask these two questions.

import { readFile } from 'node:fs/promises';

const HEALTH_TIMEOUT_MS = 2_000;

/** Resolves to true when the daemon answers `GET /healthz` with success. */
export async function answersHealth(url: string): Promise<boolean> {
  try {
    const response = await fetch(`${url}/healthz`, { signal: AbortSignal.timeout(HEALTH_TIMEOUT_MS) });
    await response.arrayBuffer();
    return response.ok;
  } catch {
    return false;
  }
}

/** Resolves to false once the process has ended, also when it is a zombie, which has its pid until its parent reaps it. */
export async function isRunning(pid: number): Promise<boolean> {
  try {
    process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
  try {
    // The line is "pid (name) state ...". The name may hold parentheses, so the state is what follows the last one.
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2, stat.lastIndexOf(')') + 3) !== 'Z';
  } catch {
    // This system has no /proc, or the process has just ended, which the next call will see.
    return true;
  }
}
