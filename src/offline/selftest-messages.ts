// This is the contract of the self-test's thread, which checks the model's arithmetic on the engine that was asked for.

import type { RequestOf, ThreadContract } from '../workers/reply.ts';

export interface SelftestCalls {
  /**
   * Computes the attention of random rows. Replies how far the sums of their probabilities are from one, the largest probability
   * of a position ahead, and how much a row changes with what lies ahead of it.
   */
  attention: [
    Record<string, never>,
    { readonly sumError: number; readonly weightAhead: number; readonly leak: number },
  ];
  /**
   * Compares every tensor's gradient with finite differences along it. Replies the largest relative difference, its tensor, and
   * the number of tensors.
   */
  gradients: [Record<string, never>, { readonly error: number; readonly tensor: string; readonly count: number }];
}

export type SelftestRequest = RequestOf<SelftestCalls>;

export const SELFTEST_THREAD: ThreadContract<SelftestCalls> = {
  file: 'offline/selftest-thread',
  requests: {},
  replies: {},
};
