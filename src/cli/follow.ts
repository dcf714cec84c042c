// Following a job to its end: results to stdout, progress to stderr, Ctrl-C as the command wants it. With JSON every event
// goes to stdout as it is, or only the result does. Texts come from render/records.ts; reconnecting is session.ts's matter.

import type { CreateResult, ParamsResult } from '../daemon/protocol/models.ts';
import type { EvaluateResult } from '../daemon/protocol/evaluation.ts';
import type { ExportResult } from '../daemon/protocol/interchange.ts';
import type { GenerateResult, TokenData } from '../daemon/protocol/generation.ts';
import type { JobEvent } from '../daemon/protocol/jobs.ts';
import type { JobKind } from '../daemon/protocol/kinds.ts';
import type { TrainResult } from '../daemon/protocol/training.ts';
import { printJson, printText, type CliContext } from './context.ts';
import { errorLine, EXIT } from './exit-codes.ts';
import type { ProgressLine } from './render/progress-line.ts';
import {
  formatCheckpoint,
  formatCreated,
  formatEval,
  formatExported,
  formatGenerated,
  formatLogprobs,
  formatOtherSamples,
  formatParams,
  formatPhaseLine,
  formatTrained,
  formatTrainLine,
} from './render/records.ts';
import { formatEvaluated, formatSample } from './render/training.ts';
import type { Session } from './client/session.ts';

/** What stdout gets: text for people, the result as one document, or every event as a line. */
export type Report = 'text' | 'document' | 'events';

export interface FollowOptions {
  readonly jobId: string;
  readonly kind: JobKind;
  readonly after?: number;
  readonly report: Report;
  /** What the first Ctrl-C does. The second always leaves the job as it is. */
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
      // When the user leaves, closing the session rejects this promise and nobody waits for it any more.
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

/** Writes events as they come; returns the exit code with the one that ends the job. */
function createWriter(options: FollowOptions): (event: JobEvent) => number | undefined {
  const { context, progress, report } = options;
  let valLoss: number | null = null;
  let tokensAreOpen = false;
  /** Those whose logprobs are to be shown. */
  const tokens: TokenData[] = [];
  // Events on a terminal are their own progress.
  const isQuiet = report === 'events' && context.stdout.isTTY === true;
  const closeTokens = (): void => {
    if (tokensAreOpen) context.stdout.write('\n');
    tokensAreOpen = false;
  };
  const tell = (line: string): void => {
    if (!isQuiet) progress.print(line);
  };
  return (event) => {
    if (report === 'events') {
      progress.clear();
      printJson(context, event);
    }
    switch (event.type) {
      case 'queued':
        if (!isQuiet) progress.update(() => `job ${options.jobId} is queued`);
        return undefined;
      case 'started':
        if (!isQuiet)
          progress.update(() => `job ${options.jobId} runs on ${event.data.workers} workers (${event.data.engine})`);
        return undefined;
      case 'progress':
        if (!isQuiet && !tokensAreOpen) progress.update((drawing) => formatPhaseLine(event.data, drawing));
        return undefined;
      case 'step': {
        const val = valLoss;
        if (!isQuiet) progress.update((drawing) => formatTrainLine(event.data, { ...drawing, valLoss: val }));
        return undefined;
      }
      case 'eval':
        valLoss = event.data.valLoss;
        tell(formatEval(event.data));
        return undefined;
      case 'sample':
        tell(formatSample(event.data));
        return undefined;
      case 'checkpoint':
        tell(formatCheckpoint(event.data));
        return undefined;
      case 'log':
        tell(event.data.message);
        return undefined;
      case 'token':
        if (report !== 'text') return undefined;
        progress.close();
        if (event.data.piece !== undefined) tokens.push(event.data);
        // Samples grow at once: the first is shown as it grows, the others when all have ended.
        if ((event.data.sample ?? 0) > 0) return undefined;
        context.stdout.write(event.data.text);
        tokensAreOpen = true;
        return undefined;
      case 'succeeded':
        progress.close();
        closeTokens();
        if (options.onResult !== undefined) options.onResult(event.data.result);
        else if (report === 'document') printJson(context, event.data.result);
        else if (report === 'text') printResult(event.data.result, options);
        if (tokens.length > 0) printText(context, `\n${formatLogprobs(tokens)}`);
        return EXIT.ok;
      case 'failed':
        progress.close();
        closeTokens();
        context.stderr.write(`${errorLine(event.data.error.message)}\n`);
        return EXIT.jobFailed;
      case 'cancelled':
        progress.close();
        closeTokens();
        context.stderr.write(`gptd: Job ${options.jobId} was cancelled.\n`);
        return EXIT.cancelled;
      default:
        // A newer daemon may say more than this client knows: what it does not know is no reason to stop.
        event satisfies never;
        return undefined;
    }
  };
}

function printResult(result: unknown, { kind, context }: FollowOptions): void {
  switch (kind) {
    case 'params':
      printText(context, formatParams(result as ParamsResult));
      return;
    case 'create':
    case 'import':
      printText(context, formatCreated(result as CreateResult));
      return;
    case 'export':
      printText(context, formatExported(result as ExportResult));
      return;
    case 'train':
      printText(context, formatTrained(result as TrainResult));
      return;
    case 'evaluate':
      printText(context, formatEvaluated(result as EvaluateResult));
      return;
    case 'generate':
      for (const text of formatOtherSamples(result as GenerateResult)) printText(context, text);
      context.stderr.write(`${formatGenerated(result as GenerateResult)}\n`);
      return;
    default:
      kind satisfies never;
  }
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
    // The job's last event may come before the answer, which nobody waits for then: the session is closed.
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
