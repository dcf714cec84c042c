// `gptd attach`: follows a job that was submitted before, from any of its events on.

import type { Command } from 'commander';
import { isTerminal, type JobState } from '../../../daemon/protocol/jobs.ts';
import { withSession } from '../../connection.ts';
import type { CliContext } from '../../context.ts';
import { EXIT } from '../../exit-codes.ts';
import { addConnectionFlags, checkParams, parseNumber, type ConnectionFlags } from '../../flags.ts';
import { followJob } from '../../follow.ts';

type AttachFlags = ConnectionFlags & { readonly after?: number };

export function addAttachCommand(program: Command, context: CliContext): void {
  addConnectionFlags(
    program
      .command('attach')
      .argument('<job>', 'job id')
      .description('follow a job from its first event on; Ctrl-C leaves it running')
      .option('--after <seq>', 'only the events after this one', parseNumber),
  ).action(async (jobId: string, flags: AttachFlags) => {
    context.exitCode = await attach(jobId, { flags, context });
  });
}

async function attach(
  jobId: string,
  { flags, context }: { readonly flags: AttachFlags; readonly context: CliContext },
): Promise<number> {
  const after = flags.after ?? 0;
  checkParams('job.subscribe', { jobId, after });
  return withSession({ flags, context }, async ({ session, progress }) => {
    const job = await session.request('job.get', { jobId });
    // A job that has ended sends no more events, so following it from its end would wait for ever.
    if (isTerminal(job.state) && after >= job.lastSeq) return exitCodeOfState(job.state);
    const report = flags.json === true ? 'events' : 'text';
    return followJob(session, { jobId, kind: job.kind, after, report, onInterrupt: 'leave', context, progress });
  });
}

function exitCodeOfState(state: JobState): number {
  if (state === 'failed') return EXIT.jobFailed;
  return state === 'cancelled' ? EXIT.cancelled : EXIT.ok;
}
