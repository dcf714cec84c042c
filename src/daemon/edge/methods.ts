// These handlers answer the methods of the wire contract that are about the daemon and its jobs. Following a job is in
// subscriptions.ts.

import process from 'node:process';
import type { Services } from '../jobs/context.ts';
import type { Jobs } from '../jobs/queue.ts';
import { VERSION } from '../protocol/daemon.ts';
import type { Handlers } from '../protocol/methods.ts';
import { parseSpec } from './rpc.ts';

type JobHandlers = Pick<
  Handlers,
  'daemon.status' | 'job.submit' | 'job.get' | 'job.list' | 'job.cancel' | 'job.pause' | 'job.resume'
>;

export function jobHandlers(
  services: Services,
  jobs: Jobs,
  { queueLimit, startedAt }: { queueLimit: number; startedAt: number },
): JobHandlers {
  const { stages, engine } = services;
  return {
    'daemon.status': () =>
      Promise.resolve({
        version: VERSION,
        pid: process.pid,
        engine,
        workers: stages.length,
        uptimeMs: Math.round(performance.now() - startedAt),
        queue: { ...jobs.counts(), limit: queueLimit },
        memory: { rssBytes: process.memoryUsage.rss(), budgetBytes: services.memoryBudgetBytes },
      }),
    'job.submit': async ({ kind, spec, key, priority }) => {
      const { jobId, state } = await jobs.submit({ kind, spec: parseSpec(kind, spec), key, priority });
      return { jobId, state };
    },
    'job.get': ({ jobId }) => jobs.get(jobId),
    'job.list': (filters) => jobs.list(filters),
    'job.cancel': async ({ jobId }) => stateOf(await jobs.cancel(jobId)),
    'job.pause': async ({ jobId }) => stateOf(await jobs.pause(jobId)),
    'job.resume': async ({ jobId }) => stateOf(await jobs.resume(jobId)),
  };
}

const stateOf = <J extends { jobId: string; state: unknown }>({ jobId, state }: J): Pick<J, 'jobId' | 'state'> => ({
  jobId,
  state,
});
