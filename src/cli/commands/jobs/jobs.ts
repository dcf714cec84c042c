// `gptd jobs`: lists the jobs that the daemon has, the newest first.

import type { Command } from 'commander';
import { LIMITS } from '../../../daemon/protocol/fields.ts';
import type { JobRecord } from '../../../daemon/protocol/jobs.ts';
import type { Session } from '../../client/session.ts';
import { withSession } from '../../connection.ts';
import { printJson, printText, type CliContext } from '../../context.ts';
import { EXIT } from '../../exit-codes.ts';
import { addConnectionFlags, type ConnectionFlags } from '../../flags.ts';
import { formatJobs } from '../../render/records.ts';

type JobsFlags = ConnectionFlags & { readonly all?: boolean };

export function addJobsCommand(program: Command, context: CliContext): void {
  addConnectionFlags(
    program
      .command('jobs')
      .description('list the jobs that have not ended')
      .option('--all', 'list the jobs that have ended, too'),
  ).action(async (flags: JobsFlags) => {
    context.exitCode = await withSession({ flags, context }, async ({ session }) => {
      const jobs = await newestJobs(session, { all: flags.all === true });
      if (flags.json === true) printJson(context, { jobs });
      else printText(context, formatJobs(jobs));
      return EXIT.ok;
    });
  });
}

/** Resolves to the newest jobs, at most as many as a list may have. The daemon may send them in several replies. */
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
