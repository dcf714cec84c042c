// Follows a job to its end. Results go to stdout and progress goes to stderr, and Ctrl-C does what the command wants. With JSON
// either every event goes to stdout as it is, or only the result does. What is special about a kind of job is in its record under
// kinds/. Reconnecting is in client/session.ts.

import type { JobEvent } from '../daemon/protocol/jobs.ts';
import type { Session } from './client/session.ts';
import { printJson, type CliContext } from './context.ts';
import { errorLine, EXIT } from './exit-codes.ts';
import { JobOutput, type Report } from './kinds/job-output.ts';
import type { JobKindRecord } from './kinds/kind.ts';
import { KINDS } from './kinds/kinds.ts';
import type { ProgressLine } from './render/progress-line.ts';

export interface FollowOptions {
  readonly jobId: string;
  /** A kind of the protocol, or one that only a newer daemon knows. */
  readonly kind: string;
  readonly after?: number;
  readonly report: Report;
  /** What the first Ctrl-C does. The second Ctrl-C always leaves the job as it is. */
  readonly onInterrupt: 'cancel' | 'leave';
  readonly context: CliContext;
  readonly progress: ProgressLine;
  /** Takes the result of a job that succeeded, which is then not printed. */
  readonly onResult?: ((result: unknown) => void) | undefined;
}

/** Resolves to the exit code once the job has ended or the user has left it. */
export async function followJob(session: Session, options: FollowOptions): Promise<number> {
  const { jobId, after = 0, progress } = options;
  const write = createWriter(options);
  const events = session.events(jobId, { after });
  const interrupts = watchInterrupts(session, options);
  try {
    for (;;) {
      const next = events.next();
      // When the user leaves, closing the session rejects this promise, for which nobody waits then.
      next.catch(() => undefined);
      const step = await Promise.race([next, interrupts.left]);
      if (step === 'left') return EXIT.cancelled;
      if (step.done === true) return EXIT.ok;
      const exitCode = write(step.value);
      if (exitCode !== undefined) return exitCode;
    }
  } finally {
    interrupts.stop();
    progress.close();
  }
}

/** Returns a function that writes events as they come. For the event that ends the job it returns the exit code. */
function createWriter(options: FollowOptions): (event: JobEvent) => number | undefined {
  const { jobId, report, context, progress } = options;
  const output = new JobOutput({ report, context, progress });
  // A newer daemon may have kinds that this client does not know. Such a job has no record, so only what all jobs have is shown.
  const records: Readonly<Record<string, JobKindRecord | undefined>> = KINDS;
  const record = Object.hasOwn(records, options.kind) ? records[options.kind] : undefined;
  const follower = record?.follow(output);
  return (event) => {
    if (report === 'events') {
      progress.clear();
      printJson(context, event);
    }
    switch (event.type) {
      case 'queued':
        output.update(() => `job ${jobId} is queued`);
        return undefined;
      case 'started':
        output.update(() => `job ${jobId} runs on ${event.data.workers} workers (${event.data.engine})`);
        return undefined;
      case 'progress':
        output.updatePhase(event.data);
        return undefined;
      case 'log':
        output.tell(event.data.message);
        return undefined;
      case 'succeeded':
        output.close();
        if (options.onResult !== undefined) options.onResult(event.data.result);
        else if (report === 'document') printJson(context, event.data.result);
        else if (report === 'text') follower?.result(event.data.result);
        return EXIT.ok;
      case 'failed':
        output.close();
        output.note(errorLine(event.data.error.message));
        return EXIT.jobFailed;
      case 'cancelled':
        output.close();
        output.note(`gptd: Job ${jobId} was cancelled.`);
        return EXIT.cancelled;
      case 'step':
      case 'eval':
      case 'sample':
      case 'checkpoint':
      case 'token':
        follower?.event?.(event);
        return undefined;
      default:
        // A newer daemon may send events that this client does not know. They are no reason to stop.
        event satisfies never;
        return undefined;
    }
  };
}

interface Interrupts {
  /** Resolves when the user leaves. */
  readonly left: Promise<'left'>;
  stop(): void;
}

function watchInterrupts(session: Session, { jobId, onInterrupt, progress }: FollowOptions): Interrupts {
  let leave: () => void = () => undefined;
  const left = new Promise<'left'>((resolve) => {
    leave = () => resolve('left');
  });
  let isFirst = true;
  let isStopped = false;
  const onSignal = (): void => {
    if (!isFirst || onInterrupt === 'leave') {
      progress.print(`Left job ${jobId}: "gptd attach ${jobId}" follows it again.`);
      leave();
      return;
    }
    isFirst = false;
    progress.print(`Cancelling job ${jobId}; press Ctrl-C again to leave it running.`);
    // The job's last event may come before the reply. Then the session is closed, and the error of the request tells nothing.
    session.request('job.cancel', { jobId }).catch((error: unknown) => {
      if (!isStopped) progress.print(errorLine(error));
    });
  };
  process.on('SIGINT', onSignal);
  const stop = (): void => {
    isStopped = true;
    process.off('SIGINT', onSignal);
  };
  return { left, stop };
}
