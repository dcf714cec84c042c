// Learning rates at the corners of every schedule.

import { expect, test } from 'vitest';
import { learningRate, type Schedule } from '../../src/model/schedule.ts';

const base: Schedule = { lr: 1, minLr: 0.1, warmupSteps: 10, schedule: 'constant', steps: 110 };

test.each(['constant', 'cosine', 'linear'] as const)('%s warms up linearly to the peak', (schedule) => {
  const rates = [1, 5, 10].map((step) => learningRate(step, { ...base, schedule }));
  expect(rates).toEqual([0.1, 0.5, 1]);
});

test('constant stays at the peak', () => {
  expect(learningRate(110, base)).toBe(1);
});

test('cosine is halfway in the middle and at minLr on the last step', () => {
  const options = { ...base, schedule: 'cosine' } as const;
  expect(learningRate(60, options)).toBeCloseTo(0.55, 12);
  expect(learningRate(35, options)).toBeCloseTo(0.1 + 0.9 * 0.5 * (1 + Math.SQRT1_2), 12);
  expect(learningRate(110, options)).toBe(0.1);
});

test('linear falls evenly to minLr on the last step', () => {
  const options = { ...base, schedule: 'linear' } as const;
  expect(learningRate(60, options)).toBeCloseTo(0.55, 12);
  expect(learningRate(35, options)).toBeCloseTo(0.775, 12);
  expect(learningRate(110, options)).toBe(0.1);
});

test('without a warm-up the first step gets the peak and the last one minLr', () => {
  const options = { ...base, warmupSteps: 0, schedule: 'linear', steps: 4 } as const;
  const rates = [1, 2, 3, 4].map((step) => learningRate(step, options));
  [1, 0.7, 0.4, 0.1].forEach((rate, i) => expect(rates[i]).toBeCloseTo(rate, 12));
});

test('a run that ends before it can decay stays at the peak, and steps past the end stay at minLr', () => {
  expect(learningRate(1, { ...base, warmupSteps: 0, schedule: 'cosine', steps: 1 })).toBe(1);
  expect(learningRate(10, { ...base, schedule: 'cosine', steps: 10 })).toBe(1);
  expect(learningRate(500, { ...base, schedule: 'cosine' })).toBe(0.1);
});
