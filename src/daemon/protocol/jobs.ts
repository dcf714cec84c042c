// This file defines the states of jobs and what may follow each of them, the records of jobs, and the events that they emit.

import type { ErrorData } from '../../model/errors.ts';
import type { TokenData } from './generation.ts';
import type { JobKind } from './kinds.ts';
import type { DatasetReport } from './training.ts';

export const JOB_STATES = ['queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled'] as const;

export type JobState = (typeof JOB_STATES)[number];

export type TerminalState = 'succeeded' | 'failed' | 'cancelled';

export const isTerminal = (state: string): state is TerminalState =>
  state === 'succeeded' || state === 'failed' || state === 'cancelled';

/**
 * Holds the states that may follow each state. A job whose daemon ended while it ran is queued again by the next daemon. Nothing
 * follows a terminal state.
 */
export const JOB_TRANSITIONS: Readonly<Record<JobState, readonly JobState[]>> = {
  queued: ['running', 'paused', 'cancelled'],
  running: ['queued', 'paused', 'succeeded', 'failed', 'cancelled'],
  paused: ['queued', 'cancelled'],
  succeeded: [],
  failed: [],
  cancelled: [],
};

/** A job as `job.get` and `job.list` show it. Times are milliseconds since 1970. */
export interface JobRecord {
  readonly jobId: string;
  /** One of JOB_KINDS, unless another version has stored the job. */
  readonly kind: string;
  readonly state: JobState;
  readonly spec: unknown;
  readonly priority: number;
  readonly createdAt: number;
  readonly startedAt: number | null;
  readonly endedAt: number | null;
  readonly lastSeq: number;
  readonly result: unknown;
  readonly error: ErrorData | null;
}

/** The events of a job. Exactly one of `succeeded`, `failed`, `cancelled` ends it. */
export type JobEventBody =
  | { readonly type: 'queued'; readonly data: { readonly kind: JobKind } }
  | { readonly type: 'started'; readonly data: { readonly workers: number; readonly engine: string } }
  | {
      readonly type: 'progress';
      readonly data: { readonly phase: string; readonly done: number; readonly total: number; readonly unit: string };
    }
  | {
      readonly type: 'step';
      readonly data: {
        readonly step: number;
        readonly steps: number;
        readonly loss: number;
        readonly lr: number;
        readonly gradNorm: number;
        /** The number of tokens that this job has trained on so far. */
        readonly tokens: number;
        readonly tokensPerSecond: number;
        readonly etaMs: number;
      };
    }
  | {
      readonly type: 'eval';
      readonly data: {
        readonly step: number;
        readonly trainLoss: number;
        /** This is null without a validation split. */
        readonly valLoss: number | null;
        readonly perplexity: number | null;
      };
    }
  | {
      readonly type: 'sample';
      readonly data: {
        readonly step: number;
        readonly prompt: string;
        /** The text that the model wrote behind the prompt; without a tokenizer, its ids. */
        readonly text: string;
        readonly ids: readonly number[];
      };
    }
  | { readonly type: 'checkpoint'; readonly data: { readonly step: number; readonly digest: string } }
  | { readonly type: 'token'; readonly data: TokenData }
  | {
      readonly type: 'log';
      /** `step` and `digest` name the checkpoint that a generation works with. */
      readonly data: {
        readonly message: string;
        readonly step?: number;
        readonly digest?: string;
        /** A training's report on its data. */
        readonly dataset?: DatasetReport;
      };
    }
  | { readonly type: 'succeeded'; readonly data: { readonly result: unknown } }
  | { readonly type: 'failed'; readonly data: { readonly error: ErrorData } }
  | { readonly type: 'cancelled'; readonly data: Record<string, never> };

/** One stored event. `seq` is contiguous from 1 within its job; `at` is milliseconds since 1970. */
export type JobEvent = JobEventBody & { readonly jobId: string; readonly seq: number; readonly at: number };
