// Whether a daemon answers, and whether a process is still there: these are the two questions of starting and stopping.

import { readFile } from 'node:fs/promises';

const HEALTH_TIMEOUT_MS = 2_000;

/** True when `GET /healthz` is answered with success. */
export async function answersHealth(url: string): Promise<boolean> {
  try {
    const response = await fetch(`${url}/healthz`, { signal: AbortSignal.timeout(HEALTH_TIMEOUT_MS) });
    await response.arrayBuffer();
    return response.ok;
  } catch {
    return false;
  }
}

/** False once the process has ended, also when its parent has not yet asked how (a zombie, which still has its pid). */
export async function isRunning(pid: number): Promise<boolean> {
  try {
    process.kill(pid, 0);
  } catch (error) {
    return (error as NodeJS.ErrnoException).code === 'EPERM';
  }
  try {
    // "pid (name) state ...": the name may hold parentheses, so the state is what follows the last one.
    const stat = await readFile(`/proc/${pid}/stat`, 'utf8');
    return stat.slice(stat.lastIndexOf(')') + 2, stat.lastIndexOf(')') + 3) !== 'Z';
  } catch {
    // No /proc on this system, or the process ended between the two looks: the next one will tell.
    return true;
  }
}
