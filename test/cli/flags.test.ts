// Checks how words on the command line become fields: numbers, the checks, and the sentences that name a flag.

import { describe, expect, it } from 'vitest';
import { checkParams, flagOf, integerBetween, parseIds, parseNumber } from '../../src/cli/flags.ts';

describe('numbers', () => {
  it.each([
    ['10', 10],
    ['-3', -3],
    ['1e-3', 0.001],
    ['.5', 0.5],
    ['4E-4', 0.0004],
  ])('reads %s', (text, value) => {
    expect(parseNumber(text)).toBe(value);
  });

  it.each(['', ' ', 'abc', '0x10', 'Infinity', 'NaN', '1_000', '1,000', '1e999'])('refuses %j', (text) => {
    expect(() => parseNumber(text)).toThrow('It must be a number.');
  });

  it('outside the bounds of a flag are refused with both bounds', () => {
    expect(integerBetween(0, 65535)('7433')).toBe(7433);
    expect(() => integerBetween(0, 65535)('65536')).toThrow('It must be an integer between 0 and 65535.');
    expect(() => integerBetween(0, 65535)('1.5')).toThrow('It must be an integer between 0 and 65535.');
  });

  it('separated by commas are token ids', () => {
    expect(parseIds('1,2, 3')).toEqual([1, 2, 3]);
    for (const text of ['', '1,,2', '1,-2', '1.5', 'a']) expect(() => parseIds(text)).toThrow('separated by commas');
  });
});

describe('parameters', () => {
  it('refuse names by their argument', () => {
    expect(() => checkParams('job.cancel', { jobId: 'a b' })).toThrow('JOB is "a b": a job id is');
    expect(() => checkParams('job.subscribe', { jobId: 'a', after: -1 })).toThrow(
      '--after is -1: it must be at least 0.',
    );
  });

  it('have flags named after their fields', () => {
    expect(['valSplit', 'topK', 'emb_dim', 'lr', 'model'].map(flagOf)).toEqual([
      '--val-split',
      '--top-k',
      '--emb-dim',
      '--lr',
      'NAME',
    ]);
  });
});
