// Checks which windows of the data a step trains on.

import { describe, expect, test } from 'vitest';
import { planWindows } from '../../../src/daemon/training/windows.ts';

type WindowSpec = Parameters<typeof planWindows>[0];

const T = 8;
const DEFAULTS: WindowSpec = {
  batchSize: 4,
  stride: undefined,
  shuffle: true,
  valSplit: 0,
  seed: 123,
};

const epoch = (spec: WindowSpec, tokenCount: number, number = 0): number[] => {
  const windows = planWindows(spec, { tokenCount, contextLength: T });
  const first = number * windows.stepsPerEpoch;
  return Array.from({ length: windows.stepsPerEpoch }, (_, i) => windows.batch(first + i)).flat();
};

describe('in order', () => {
  test('windows are taken as they come, and the same ones every epoch', () => {
    const spec = { ...DEFAULTS, shuffle: false, stride: T + 1 };
    const windows = planWindows(spec, { tokenCount: 8 * (T + 1), contextLength: T });
    expect(windows).toMatchObject({ trainWindows: 8, validationWindows: 0, stepsPerEpoch: 2 });
    expect(windows.batch(0)).toEqual([0, 9, 18, 27]);
    expect(windows.batch(1)).toEqual([36, 45, 54, 63]);
    expect(windows.batch(2)).toEqual(windows.batch(0));
    expect(windows.batch(1_000_001)).toEqual(windows.batch(1));
  });

  test('an incomplete last batch is dropped, and a last window needs its target', () => {
    const spec = { ...DEFAULTS, shuffle: false };
    const count = (tokenCount: number): number => planWindows(spec, { tokenCount, contextLength: T }).trainWindows;
    // Nine windows of T tokens need one more token, the last target.
    expect([count(9 * T), count(9 * T + 1)]).toEqual([8, 9]);
    expect(planWindows(spec, { tokenCount: 11 * T + 1, contextLength: T }).stepsPerEpoch).toBe(2);
  });
});

describe('shuffled', () => {
  test('an epoch has every window at most once, all of them when batches divide them, in another order each time', () => {
    const every = Array.from({ length: 40 }, (_, i) => i * T);
    const [first, second] = [0, 1].map((number) => epoch(DEFAULTS, 40 * T + 1, number));
    expect([...first].sort((a, b) => a - b)).toEqual(every);
    expect([...second].sort((a, b) => a - b)).toEqual(every);
    expect(first).not.toEqual(every);
    expect(second).not.toEqual(first);
    const dropped = epoch(DEFAULTS, 42 * T + 1);
    expect(dropped).toHaveLength(40);
    expect(new Set(dropped).size).toBe(40);
  });

  test('the order follows the seed', () => {
    expect(epoch(DEFAULTS, 400)).toEqual(epoch(DEFAULTS, 400));
    expect(epoch({ ...DEFAULTS, seed: 124 }, 400)).not.toEqual(epoch(DEFAULTS, 400));
  });
});

describe('a validation split', () => {
  test('takes the last part, which no training window touches', () => {
    const spec = { ...DEFAULTS, valSplit: 0.25 };
    const windows = planWindows(spec, { tokenCount: 400, contextLength: T });
    expect(windows.validationWindows).toBe(12);
    expect(Math.max(...epoch(spec, 400)) + T + 1).toBeLessThanOrEqual(300);
    const sampled = windows.sample('validation', 5);
    expect(new Set(sampled).size).toBe(5);
    expect(Math.min(...sampled)).toBe(300);
    expect(Math.max(...sampled) + T + 1).toBeLessThanOrEqual(400);
    expect(windows.sample('validation', 1000)).toHaveLength(12);
    expect(windows.sample('train', 3).every((start) => start + T + 1 <= 300)).toBe(true);
  });
});

describe('data that is too short', () => {
  test.each([
    ['no window', 8, 0, /8 training tokens make 0 windows of 8 \+ 1 tokens/],
    ['less than a batch', 4 * T, 0, /make 3 windows .* a batch needs 4\. Give more text/],
    ['no window to validate on', 5 * T + 1, 0.1, /too short for --val-split 0\.1: 4 validation tokens/],
    ['nothing', 0, 0, /0 training tokens/],
  ])('%s is told with its numbers', (_what, tokenCount, valSplit, message) => {
    expect(() => planWindows({ ...DEFAULTS, valSplit }, { tokenCount, contextLength: T })).toThrow(
      expect.objectContaining({ code: 'invalid_spec', message: expect.stringMatching(message) as string }),
    );
  });
});
