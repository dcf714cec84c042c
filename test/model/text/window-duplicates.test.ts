// Checks the count of validation windows that occur in the training part against a search that looks everywhere.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { countDuplicateWindows } from '../../../src/model/text/window-duplicates.ts';

interface Windows {
  readonly from: number;
  readonly length: number;
  readonly stride: number;
}

function countSlowly(tokens: readonly number[], { from, length, stride }: Windows): number {
  const text = (start: number): string => tokens.slice(start, start + length).join(',');
  const seen = new Set<string>();
  for (let start = 0; start + length <= from; start++) seen.add(text(start));
  let count = 0;
  for (let start = from; start + length <= tokens.length; start += stride) if (seen.has(text(start))) count += 1;
  return count;
}

test('the count is that of a search for each window, for any tokens and windows', () => {
  const cases = fc.record({
    tokens: fc.array(fc.nat(2), { maxLength: 80 }),
    from: fc.nat(60),
    length: fc.integer({ min: 1, max: 6 }),
    stride: fc.integer({ min: 1, max: 4 }),
  });
  fc.assert(
    fc.property(cases, ({ tokens, ...windows }) => {
      const from = Math.min(windows.from, tokens.length);
      const found = countDuplicateWindows(Uint16Array.from(tokens), { ...windows, from });
      expect(found).toBe(countSlowly(tokens, { ...windows, from }));
    }),
    { numRuns: 500 },
  );
});

test('each of several equal validation windows counts, and wide ids are distinguished', () => {
  const tokens = [1, 2, 3, 9, 1, 2, 3, 1, 2, 3, 1, 2, 4];
  expect(countDuplicateWindows(Uint16Array.from(tokens), { from: 4, length: 3, stride: 3 })).toBe(2);
  const wide = Uint32Array.from(tokens, (token) => token + 65536);
  wide[0] = 1;
  expect(countDuplicateWindows(wide, { from: 4, length: 3, stride: 3 })).toBe(0);
});
