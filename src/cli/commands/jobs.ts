// Commands about jobs that exist: list them, watch one, cancel, pause or resume one.

import type { Command } from 'commander';
import { EXIT } from '../exit-codes.ts';
import { isTerminal, type JobRecord, type JobState } from '../../daemon/protocol/jobs.ts';
import { LIMITS } from '../../daemon/protocol/fields.ts';
import { printJson, printText, type CliContext } from '../context.ts';
import { addConnectionFlags, checkParams, parseNumber, type ConnectionFlags } from '../flags.ts';
import { followJob } from '../follow.ts';
import { formatJobs } from '../render/records.ts';
import type { Session } from '../client/session.ts';
import { withSession } from '../submit.ts';

const JOB_ACTIONS = [
  ['cancel', 'job.cancel', 'cancel a job'],
  ['pause', 'job.pause', 'pause a job at its next checkpoint'],
  ['resume', 'job.resume', 'continue a paused job'],
] as const;

type JobsFlags = ConnectionFlags & { readonly all?: boolean };
type AttachFlags = ConnectionFlags & { readonly after?: number };

export function addJobCommands(program: Command, context: CliContext): void {
  addConnectionFlags(
    program
      .command('jobs')
      .description('list the jobs that have not ended')
      .option('--all', 'those that have ended too'),
  ).action(async (flags: JobsFlags) => {
    context.exitCode = await withSession({ flags, context }, async ({ session }) => {
      const jobs = await newestJobs(session, { all: flags.all === true });
      if (flags.json === true) printJson(context, { jobs });
      else printText(context, formatJobs(jobs));
      return EXIT.ok;
    });
  });

  addConnectionFlags(
    program
      .command('attach')
      .argument('<job>', 'job id')
      .description('follow a job from its first event on; Ctrl-C leaves it running')
      .option('--after <seq>', 'only the events after this one', parseNumber),
  ).action(async (jobId: string, flags: AttachFlags) => {
    context.exitCode = await attach(jobId, { flags, context });
  });

  for (const [name, method, description] of JOB_ACTIONS) {
    addConnectionFlags(program.command(name).argument('<job>', 'job id').description(description)).action(
      async (jobId: string, flags: ConnectionFlags) => {
        checkParams(method, { jobId });
        context.exitCode = await withSession({ flags, context }, async ({ session }) => {
          const answer = await session.request(method, { jobId });
          if (flags.json === true) printJson(context, answer);
          else printText(context, `${answer.jobId}: ${answer.state}`);
          return EXIT.ok;
        });
      },
    );
  }
}

/** As many as one list may have, in as many replies as they need. */
async function newestJobs(session: Session, { all }: { readonly all: boolean }): Promise<readonly JobRecord[]> {
  const jobs: JobRecord[] = [];
  let before: string | undefined;
  do {
    const limit = LIMITS.listMax - jobs.length;
    const answer = await session.request('job.list', { all, limit, before });
    jobs.push(...answer.jobs);
    before = answer.next;
  } while (before !== undefined && jobs.length < LIMITS.listMax);
  return jobs;
}

async function attach(
  jobId: string,
  { flags, context }: { readonly flags: AttachFlags; readonly context: CliContext },
): Promise<number> {
  const after = flags.after ?? 0;
  checkParams('job.subscribe', { jobId, after });
  return withSession({ flags, context }, async ({ session, progress }) => {
    const job = await session.request('job.get', { jobId });
    // An ended job says nothing more: following it from its end would wait for ever.
    if (isTerminal(job.state) && after >= job.lastSeq) return exitCodeOfState(job.state);
    const report = flags.json === true ? 'events' : 'text';
    return followJob(session, { jobId, kind: job.kind, after, report, onInterrupt: 'leave', context, progress });
  });
}

function exitCodeOfState(state: JobState): number {
  if (state === 'failed') return EXIT.jobFailed;
  return state === 'cancelled' ? EXIT.cancelled : EXIT.ok;
}
