// The self-test's part of the thread contract: checks of the model's arithmetic on the engine that was asked for.

import type { RequestOf, ThreadContract } from '../workers/reply.ts';

export interface SelftestCalls {
  /** Attention weights of random rows: how far their sums are from one, and how much a row changes with what lies ahead of it. */
  attention: [
    Record<string, never>,
    { readonly sumError: number; readonly weightAhead: number; readonly leak: number },
  ];
  /** Every tensor's gradient against finite differences along it: the largest relative difference, and where. */
  gradients: [Record<string, never>, { readonly error: number; readonly tensor: string; readonly count: number }];
}

export type SelftestRequest = RequestOf<SelftestCalls>;

export const SELFTEST_THREAD: ThreadContract<SelftestCalls> = {
  file: 'offline/selftest-thread',
  requests: {},
  replies: {},
};
