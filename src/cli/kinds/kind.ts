// What the command line knows of a kind of job: what --json prints, and what is written for people while a job runs and when it
// has succeeded. Each kind has one such record, in a file of its own beside this one.

import type { JobEvent } from '../../daemon/protocol/jobs.ts';
import type { JobOutput, Report } from './job-output.ts';

export interface JobKindRecord<Result = unknown> {
  /** What --json prints of a job that its command follows: the result as one document, or every event as a line. */
  readonly json: Exclude<Report, 'text'>;
  /** Returns a follower. It is called once for each job that is followed. */
  follow(output: JobOutput): JobFollower<Result>;
}

/** The events that only some kinds of job have. */
export type KindEvent = Extract<JobEvent, { type: 'step' | 'eval' | 'sample' | 'checkpoint' | 'token' }>;

export interface JobFollower<Result = unknown> {
  /** Takes the events that only some kinds of job have, such as `step` or `token`, as they come. */
  event?(event: KindEvent): void;
  /** Writes the result for people. */
  result(result: Result): void;
}

/** Returns the record of a kind that has no events of its own and whose result is a text on stdout. */
export const documentKind = <Result>(format: (result: Result) => string): JobKindRecord<Result> => ({
  json: 'document',
  follow: (output) => ({ result: (result) => output.print(format(result)) }),
});
