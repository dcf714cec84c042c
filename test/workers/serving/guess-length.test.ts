// Checks that the number of guessed ids follows how many of the earlier guesses were right.

import { expect, test } from 'vitest';
import { PURPOSE, uniform } from '../../../src/model/random/philox.ts';
import { GuessLength } from '../../../src/workers/serving/guess-length.ts';
import { SequenceOutput } from '../../../src/workers/serving/sequence-output.ts';

/** Returns the number of guesses in each of `steps` steps. A guess is right when `isRight` says so. */
function countsOf(length: GuessLength, steps: number, isRight: (guess: number) => boolean): number[] {
  return Array.from({ length: steps }, () => {
    const drafted = Math.min(15, length.count);
    const wrong = Array.from({ length: drafted }, (_, i) => i).findIndex((guess) => !isRight(guess));
    length.learn({ drafted, accepted: wrong === -1 ? drafted : wrong });
    return drafted;
  });
}

test('begins with a few guesses, and makes more while they are right', () => {
  const counts = countsOf(new GuessLength(), 400, () => true);
  expect(counts[0]).toBe(5);
  expect(counts.slice(10)).toEqual(counts.slice(10).map(() => 15));
});

test.each([
  [0.4, 3],
  [0.6, 5],
  [0.95, 15],
])('where %f of the guesses are right, about %i ids are guessed', (rate, wanted) => {
  let index = 0;
  const isRight = (): boolean => uniform({ seed: 1, purpose: PURPOSE.sampling, step: 0, index: index++ }) < rate;
  const counts = countsOf(new GuessLength(), 400, isRight).slice(50);
  const mean = counts.reduce((sum, count) => sum + count, 0) / counts.length;
  expect(Math.abs(mean - wanted) / wanted).toBeLessThan(0.35);
});

test('pauses where no guess is right, tries again, and finds text that has begun to repeat itself', () => {
  const length = new GuessLength();
  const counts = countsOf(length, 300, () => false);
  expect(counts.filter((count) => count === 0).length).toBeGreaterThan(150);
  expect(counts.slice(-60).some((count) => count > 0)).toBe(true);
  expect(countsOf(length, 60, () => true).at(-1)).toBe(15);
});

test.each([
  [[1, 2, 3, 1, 2, 3], 5, [1, 2, 3, 1, 2]],
  [[9, 7, 7, 7], 5, [7, 7, 7, 7, 7]],
  [[1, 2, 3, 4, 5, 6, 7, 8, 1, 2], 3, [3, 4, 5]],
  [[1, 2, 3, 4], 5, []],
])(
  'ids that follow the earlier end of %j are guessed, again and again where they reach its end',
  (ids, max, guessed) => {
    const begin = {
      sequence: 's',
      prompt: ids,
      continued: [],
      stopIds: [],
      sampling: { temperature: 0, seed: 1 },
      sample: 0,
    };
    const output = new SequenceOutput(begin);
    expect(output.draft(max)).toEqual(guessed);
  },
);
