// What a kind of job is: one value in the folder of its domain. The queue knows jobs by these values alone, and the composition
// hands them over; a new kind is a folder or a file of its own, an entry in the protocol's list and a line in the composition.

import type { JOB_SPECS, JobKind, JobResults, JobSpecs } from '../protocol/kinds.ts';
import type { MemoryNeed } from '../threads/memory.ts';
import type { StoredModel } from '../../workers/store/messages.ts';
import type { JobContext, Services } from './context.ts';

/** A job that somebody wants to submit. What its spec names is looked up once, however often it is asked for. */
export interface Submission<K extends JobKind = JobKind> {
  readonly spec: JobSpecs[K];
  readonly services: Services;
  /** The model that the spec names; null when a job that has not ended is about to make it. Throws `not_found`. */
  model(): Promise<StoredModel | null>;
  /** Throws `not_found` for a blob that is not there, and `invalid_spec` for an empty one. */
  requireBlob(digest: string): Promise<void>;
}

export interface Kind<K extends JobKind = JobKind> {
  readonly name: K;
  /** Parses a spec and fills in its defaults, also those of fields that the version which stored it did not know. */
  readonly spec: (typeof JOB_SPECS)[K];
  /** Jobs of a lane wait for each other, whatever their kinds: `atOnce` of them run at the same time. */
  readonly lane: string;
  readonly atOnce: number;
  /** The name of the model that the job makes: jobs that were submitted later and use it wait until this one has ended. */
  makes?(spec: JobSpecs[K]): string;
  /** Whether the job trains its model: of two such jobs the one that has begun, or that is more urgent, is finished first. */
  readonly trains?: boolean;
  /** The memory that the job takes, as far as it can be known before it runs; null when it takes none worth counting. */
  needs(submission: Submission<K>): Promise<MemoryNeed | null>;
  /** Refuses what is certain to fail, before anything is stored. Throws `invalid_spec`, `not_found` or `conflict`. */
  check(submission: Submission<K>): Promise<void>;
  /** Resolves to the job's result. It may run again after an interruption, and then goes on from what it has saved. */
  run(context: JobContext<K>): Promise<JobResults[K]>;
}

/** Every kind that the protocol lists. */
export type Kinds = { readonly [K in JobKind]: Kind<K> };
