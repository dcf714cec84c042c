// A kind of job is one value, which lives in the folder of its domain. The queue knows jobs by these values alone, and
// composition.ts hands them over. A new kind needs a file or a folder of its own, an entry in protocol/kinds.ts and a line in
// composition.ts.

import type { JOB_SPECS, JobKind, JobResults, JobSpecs } from '../protocol/kinds.ts';
import type { MemoryNeed } from '../threads/memory.ts';
import type { StoredModel } from '../../workers/store/messages.ts';
import type { JobContext, Services } from './context.ts';

/** A job that a client wants to submit. The model that its spec names is looked up once, however often `model` is called. */
export interface Submission<K extends JobKind = JobKind> {
  readonly spec: JobSpecs[K];
  readonly services: Services;
  /**
   * Resolves to the model that the spec names, or to null when a job that has not ended is about to make it. Throws `not_found`.
   */
  model(): Promise<StoredModel | null>;
  /** Throws `not_found` for a blob that does not exist, and `invalid_spec` for an empty one. */
  requireBlob(digest: string): Promise<void>;
}

export interface Kind<K extends JobKind = JobKind> {
  readonly name: K;
  /** Parses a spec and fills in its defaults, including those of fields that the version which stored it did not know. */
  readonly spec: (typeof JOB_SPECS)[K];
  /** The jobs of one lane wait for each other, whatever their kinds: at most `atOnce` of them run at the same time. */
  readonly lane: string;
  readonly atOnce: number;
  /**
   * Returns the name of the model that the job makes. Jobs that were submitted later and use that model wait until this job has
   * ended.
   */
  makes?(spec: JobSpecs[K]): string;
  /**
   * Whether the job trains its model. Of two such jobs on one model, the one that has begun, or else the more urgent one, is
   * finished first.
   */
  readonly trains?: boolean;
  /** Resolves to the memory that the job takes, or to null when it is not worth counting or not known before the job runs. */
  needs(submission: Submission<K>): Promise<MemoryNeed | null>;
  /** Refuses a job that is certain to fail, before anything is stored. Throws `invalid_spec`, `not_found` or `conflict`. */
  check(submission: Submission<K>): Promise<void>;
  /** Resolves to the job's result. The job may run again after an interruption, and then goes on from what it has saved. */
  run(context: JobContext<K>): Promise<JobResults[K]>;
}

/** Holds one value for each kind that the protocol lists. */
export type Kinds = { readonly [K in JobKind]: Kind<K> };
