// Submits a job: connects, sends the spec, and then follows the job or prints its id and leaves. The request carries a key, so
// that a connection that breaks between the request and its reply does not make two jobs of one command.

import { randomUUID } from 'node:crypto';
import type { JobKind } from '../daemon/protocol/kinds.ts';
import { withSession, type SessionUse } from './connection.ts';
import { printJson, printText, type CliContext } from './context.ts';
import { EXIT } from './exit-codes.ts';
import type { SubmitFlags } from './flags.ts';
import { followJob } from './follow.ts';
import { KINDS } from './kinds/kinds.ts';

export interface Submission {
  readonly kind: JobKind;
  readonly flags: SubmitFlags;
  readonly context: CliContext;
  /** Resolves to the complete spec. It is called once connected, so that it can upload files. */
  readonly spec: (opened: SessionUse) => Promise<Readonly<Record<string, unknown>>>;
  /** Does what is left to do with the result of a job that succeeded. With it, the result is not printed before. */
  readonly finish?: (result: unknown, opened: SessionUse) => Promise<void>;
}

/** Submits a job and resolves to the exit code. */
export async function submitJob(submission: Submission): Promise<number> {
  const { kind, flags, context } = submission;
  return withSession({ flags, context }, async (opened) => {
    const spec = await submission.spec(opened);
    const params = { kind, spec: { ...spec }, key: randomUUID(), priority: flags.priority };
    const { jobId } = await opened.session.request('job.submit', params);
    if (flags.detach === true) {
      if (flags.json === true) printJson(context, { jobId });
      else printText(context, jobId);
      return EXIT.ok;
    }
    let result: unknown;
    const exitCode = await followJob(opened.session, {
      jobId,
      kind,
      report: flags.json === true ? KINDS[kind].json : 'text',
      onInterrupt: 'cancel',
      context,
      progress: opened.progress,
      onResult: submission.finish === undefined ? undefined : (value) => (result = value),
    });
    if (exitCode === EXIT.ok) await submission.finish?.(result, opened);
    return exitCode;
  });
}
