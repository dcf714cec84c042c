// Checks a model's history: the points that led to its newest weights, which are read in pages and kept when the jobs are
// deleted.

import { expect, test } from 'vitest';
import type { HistoryCursor, MetricsPoint } from '../../../src/workers/store/messages.ts';
import type { Store } from '../../../src/workers/store/thread.ts';
import { openedStore } from './fixture.ts';

function train(
  store: Store,
  { jobId, model = 'm', steps, evals = [] }: { jobId: string; model?: string; steps: number[]; evals?: number[] },
): void {
  store.submitJob({ jobId, kind: 'train', spec: { model }, key: undefined, queueLimit: 10, priority: 0 });
  const items = [
    ...steps.map((step) => ({
      jobId,
      type: 'step',
      key: `step:${step}`,
      data: { step, loss: 10 - step / 10, lr: 0.1, gradNorm: 1 / 3, tokens: step * 8, tokensPerSecond: 100 },
    })),
    ...evals.map((step) => ({ jobId, type: 'eval', data: { step, trainLoss: 1, valLoss: 2 + step, perplexity: 9 } })),
  ];
  store.appendEvents({ items });
}

function history(store: Store, limit = 1000): MetricsPoint[] {
  const points: MetricsPoint[] = [];
  let after: HistoryCursor | null = null;
  do {
    const page: ReturnType<Store['readHistory']> = store.readHistory({ model: 'm', after, limit });
    expect(page.points.length).toBeLessThanOrEqual(limit);
    points.push(...page.points);
    after = page.next;
  } while (after !== null);
  return points;
}

const stepsOf = (points: readonly MetricsPoint[]): string[] => points.map(({ jobId, step }) => `${jobId}${step}`);

test('a step and its evaluation share a point, to the last bit, and an evaluation before the first step has its own', () => {
  const { store } = openedStore();
  train(store, { jobId: 'a', steps: [1, 2], evals: [0, 2] });
  const points = history(store);
  expect(points).toMatchObject([
    { step: 0, loss: null, gradNorm: null, trainLoss: 1, valLoss: 2 },
    { step: 1, loss: 9.9, lr: 0.1, gradNorm: 1 / 3, tokens: 8, tokensPerSecond: 100, trainLoss: null, valLoss: null },
    { step: 2, loss: 9.8, trainLoss: 1, valLoss: 4 },
  ]);
});

test('a later job replaces the points behind the step at which it began', () => {
  const { store } = openedStore();
  train(store, { jobId: 'a', steps: [1, 2, 3, 4, 5] });
  train(store, { jobId: 'b', steps: [6, 7, 8], evals: [5] });
  train(store, { jobId: 'c', model: 'm@3', steps: [4, 5] });
  train(store, { jobId: 'x', model: 'other', steps: [1] });
  const expected = ['a1', 'a2', 'a3', 'c4', 'c5'];
  expect(stepsOf(history(store))).toEqual(expected);
  for (const limit of [1, 2, 3, 5]) expect(stepsOf(history(store, limit))).toEqual(expected);
});

test('a model that was never trained has an empty history', () => {
  const { store } = openedStore();
  expect(history(store)).toEqual([]);
});
