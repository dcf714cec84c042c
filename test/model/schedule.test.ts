// Checks learning rates at the corners of every schedule.

import { expect, test } from 'vitest';
import { learningRate, SCHEDULES, type Schedule } from '../../src/model/schedule.ts';

const base: Schedule = { lr: 1, minLr: 0.1, warmupSteps: 10, schedule: 'constant', steps: 110 };

test.each(SCHEDULES)('%s warms up linearly to the peak', (schedule) => {
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

test('wsd stays at the peak and falls evenly over its last steps, by default a fifth of the run', () => {
  const options = { ...base, schedule: 'wsd', decaySteps: 40 } as const;
  expect([10, 11, 50, 70].map((step) => learningRate(step, options))).toEqual([1, 1, 1, 1]);
  expect(learningRate(90, options)).toBeCloseTo(0.55, 12);
  expect(learningRate(110, options)).toBe(0.1);
  const fifth = { ...options, decaySteps: undefined };
  expect(learningRate(88, fifth)).toBe(1);
  expect(learningRate(99, fifth)).toBeCloseTo(0.55, 12);
  expect(learningRate(110, fifth)).toBe(0.1);
});

// The formulas as other trainers write them. Their step n is the n-th update here, counted from 1.
const REFERENCES: Readonly<Record<(typeof SCHEDULES)[number], (step: number) => number>> = {
  constant: (step) => (step < 10 ? step / 10 : 1),
  linear: (step) => (step < 10 ? step / 10 : 0.1 + 0.9 * ((110 - step) / (110 - 10))),
  // nanoGPT has coeff = 0.5 (1 + cos(pi (it - warmup) / (decay - warmup))).
  cosine: (step) => (step < 10 ? step / 10 : 0.1 + 0.5 * (1 + Math.cos((Math.PI * (step - 10)) / (110 - 10))) * 0.9),
  // The decay takes 22 of 110 steps.
  wsd: (step) => (step < 10 ? step / 10 : step <= 88 ? 1 : 1 - 0.9 * ((step - 88) / 22)),
};

test.each(SCHEDULES)('%s follows its formula at every step', (schedule) => {
  for (let step = 1; step <= 110; step++) {
    expect(learningRate(step, { ...base, schedule })).toBeCloseTo(REFERENCES[schedule](step), 12);
  }
});

test('wsd whose decay is as long as the run decays from the end of its warm-up', () => {
  const options = { ...base, schedule: 'wsd', decaySteps: 1000 } as const;
  for (const step of [10, 11, 60, 110]) {
    expect(learningRate(step, options)).toBeCloseTo(learningRate(step, { ...base, schedule: 'linear' }), 12);
  }
});
