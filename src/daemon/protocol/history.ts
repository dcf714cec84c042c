// This file defines a model's history on the wire, which is the losses of its steps, and the check of its digest and hash chain.

import { z } from 'zod';
import { integer, LIMITS, modelName } from './fields.ts';

/**
 * One step of a model's training, an evaluation, or both. Values that were not measured are null. Times are milliseconds since
 * 1970.
 */
export interface HistoryPoint {
  readonly jobId: string;
  readonly step: number;
  readonly at: number;
  readonly loss: number | null;
  readonly lr: number | null;
  readonly gradNorm: number | null;
  readonly tokens: number | null;
  readonly tokensPerSecond: number | null;
  readonly trainLoss: number | null;
  readonly valLoss: number | null;
}

export const historyParams = z.strictObject({
  model: modelName,
  /** The last point that the client has: `next` of the reply before. */
  after: z
    .strictObject({ jobId: z.string().max(64), step: integer(0, 2 ** 53 - 1) })
    .nullable()
    .default(null),
  limit: integer(1, LIMITS.listMax).default(LIMITS.listMax),
});

export interface HistoryResult {
  readonly points: readonly HistoryPoint[];
  readonly next: { readonly jobId: string; readonly step: number } | null;
}

export interface VerifyResult {
  readonly model: string;
  readonly step: number;
  /**
   * The digest that is stored with the checkpoint. `recomputedDigest` is computed again from its chunks; it is null when a chunk
   * is damaged.
   */
  readonly digest: string;
  readonly recomputedDigest: string | null;
  /** The last link of the hash chain; null for a checkpoint that no training made. */
  readonly chain: string | null;
  /** The chain computed again from the stored steps of the job that made the checkpoint; null when there are none. */
  readonly recomputedChain: string | null;
  /** Says what is wrong; null when all is well. */
  readonly problem: string | null;
  readonly ok: boolean;
}
