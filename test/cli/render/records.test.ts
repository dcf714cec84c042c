// Checks how numbers, tables and bars are shown to people.

import { describe, expect, it } from 'vitest';
import {
  formatBar,
  formatBytes,
  formatDuration,
  formatJobs,
  formatPhaseLine,
  formatTable,
} from '../../../src/cli/render/records.ts';

describe('numbers', () => {
  it('are short and exact enough', () => {
    expect([512, 2048, 652_038_144, 5 * 2 ** 30].map(formatBytes)).toEqual([
      '512 bytes',
      '2.0 KB',
      '621.8 MB',
      '5.00 GB',
    ]);
    expect([400, 45_000, 83_000, 7_500_000, 273_600_000, Infinity].map(formatDuration)).toEqual([
      '0s',
      '45s',
      '1m 23s',
      '2h 05m',
      '3d 4h',
      '?',
    ]);
  });
});

describe('tables', () => {
  it('align numbers right and words left, without trailing blanks', () => {
    expect(
      formatTable(
        ['NAME', 'STEP'],
        [
          ['a', '1,000'],
          ['longer', '5'],
        ],
      ),
    ).toBe('NAME     STEP\na       1,000\nlonger      5');
  });

  it('show jobs with their model', () => {
    const job = {
      jobId: 'j1',
      kind: 'train',
      state: 'succeeded',
      priority: -5,
      lastSeq: 3,
      result: null,
      error: null,
    } as const;
    const text = formatJobs([{ ...job, spec: { model: 'tiny' }, createdAt: 0, startedAt: 1000, endedAt: 84_000 }]);
    expect(text.split('\n')[1]).toMatch(/^j1 +train +tiny +succeeded +-5 +1970-01-01 00:00:00 +1m 23s$/);
    expect(formatJobs([])).toBe('There are no such jobs.');
  });
});

describe('progress', () => {
  it('keeps bars within their width', () => {
    expect([-1, 0, 0.5, 1, 2].map((fraction) => formatBar(fraction, 4))).toEqual([
      '[----]',
      '[----]',
      '[##--]',
      '[####]',
      '[####]',
    ]);
  });

  it('names a phase and how much of it is done', () => {
    const phase = { phase: 'tokenizing', done: 1 << 20, total: 4 << 20, unit: 'bytes' };
    expect(formatPhaseLine(phase, { columns: Infinity, live: false })).toBe('tokenizing: 25% (1.0 MB of 4.0 MB)');
  });
});
