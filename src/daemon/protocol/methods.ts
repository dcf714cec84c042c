// This file defines the methods of the WebSocket: the JSON-RPC 2.0 envelopes, and the parameters and the result of each method.
// Unknown keys are refused.

import { z } from 'zod';
import type { DaemonStatus } from './daemon.ts';
import type { RpcError } from './errors.ts';
import { integer, LIMITS, modelName, modelReference } from './fields.ts';
import { historyParams, type HistoryResult, type VerifyResult } from './history.ts';
import { JOB_STATES, type JobEvent, type JobRecord, type JobState } from './jobs.ts';
import { JOB_KINDS, type JobKind } from './kinds.ts';
import type { CheckpointRecord, ModelRecord } from './models.ts';

const jobId = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/, 'a job id is 1 to 64 letters, digits, dashes or underscores');

const byJob = z.strictObject({ jobId });

/** The parameters of every method. */
export const METHODS = {
  'daemon.status': z.strictObject({}).default({}),
  'job.submit': z.strictObject({
    kind: z.enum(JOB_KINDS as [JobKind, ...JobKind[]]),
    spec: z.record(z.string(), z.unknown()),
    /** The same key gives the same job as long as the job is kept, so a client that lost its connection may submit again. */
    key: z.string().min(1).max(256).optional(),
    /** A larger priority runs sooner. Jobs of equal priority run in order of submission. */
    priority: integer(-LIMITS.priorityMax, LIMITS.priorityMax).default(0),
  }),
  'job.subscribe': z.strictObject({ jobId, after: integer(0, 2 ** 53 - 1).default(0) }),
  'job.unsubscribe': byJob,
  'job.get': byJob,
  'job.list': z
    .strictObject({
      state: z.enum(JOB_STATES).optional(),
      kind: z.enum(JOB_KINDS as [JobKind, ...JobKind[]]).optional(),
      /** When this is false, only jobs that have not ended are listed. */
      all: z.boolean().default(true),
      limit: integer(1, LIMITS.listMax).default(100),
      /** When this is set, only jobs that were submitted before that job are listed. */
      before: jobId.optional(),
    })
    .default({ all: true, limit: 100 }),
  'job.cancel': byJob,
  'job.pause': byJob,
  'job.resume': byJob,
  'model.list': z.strictObject({}).default({}),
  'model.get': z.strictObject({ model: modelReference }),
  'model.delete': z.strictObject({ model: modelName }),
  'model.history': historyParams,
  'model.verify': z.strictObject({ model: modelReference }),
  'checkpoint.list': z.strictObject({ model: modelName }),
} as const;

export type MethodName = keyof typeof METHODS;

export type MethodInputs = { readonly [M in MethodName]: z.input<(typeof METHODS)[M]> };

export type MethodParams = { readonly [M in MethodName]: z.output<(typeof METHODS)[M]> };

export interface MethodResults {
  readonly 'daemon.status': DaemonStatus;
  readonly 'job.submit': { readonly jobId: string; readonly state: JobState };
  readonly 'job.subscribe': { readonly lastSeq: number };
  readonly 'job.unsubscribe': Record<string, never>;
  readonly 'job.get': JobRecord;
  /** Lists the newest jobs first. `next` is there when there are more: pass it as `before` to get them. */
  readonly 'job.list': { readonly jobs: readonly JobRecord[]; readonly next?: string | undefined };
  readonly 'job.cancel': { readonly jobId: string; readonly state: JobState };
  readonly 'job.pause': { readonly jobId: string; readonly state: JobState };
  readonly 'job.resume': { readonly jobId: string; readonly state: JobState };
  readonly 'model.list': { readonly models: readonly ModelRecord[] };
  readonly 'model.get': ModelRecord;
  readonly 'model.delete': Record<string, never>;
  readonly 'model.history': HistoryResult;
  readonly 'model.verify': VerifyResult;
  readonly 'checkpoint.list': { readonly checkpoints: readonly CheckpointRecord[] };
}

/** Holds one handler for each method. */
export type Handlers = { readonly [M in MethodName]: (params: MethodParams[M]) => Promise<MethodResults[M]> };

export const rpcRequest = z.strictObject({
  jsonrpc: z.literal('2.0'),
  id: z.union([z.string().max(256), z.number(), z.null()]).optional(),
  method: z.string().max(256),
  params: z.unknown().optional(),
});

export type RpcResponse =
  | { readonly jsonrpc: '2.0'; readonly id: string | number | null; readonly result: unknown }
  | { readonly jsonrpc: '2.0'; readonly id: string | number | null; readonly error: RpcError };

export interface JobEventNotification {
  readonly jsonrpc: '2.0';
  readonly method: 'job.event';
  readonly params: JobEvent;
}
