// Checks that loss curves in a terminal stay within its width and name their steps and losses.

import { describe, expect, it } from 'vitest';
import { drawLosses } from '../../../src/cli/render/loss-chart.ts';
import type { HistoryPoint } from '../../../src/daemon/protocol/history.ts';

const NOTHING = { lr: null, gradNorm: null, tokens: null, tokensPerSecond: null, trainLoss: null } as const;

const points = (steps: number, height: number): HistoryPoint[] =>
  Array.from({ length: steps }, (_, i) => ({
    ...NOTHING,
    jobId: 'j',
    step: i + 1,
    at: 0,
    loss: height * Math.exp(-i / steps),
    valLoss: (i + 1) % 50 === 0 ? height : null,
  }));

describe('a chart of losses', () => {
  it('is as wide as the terminal, and says the first and last step and the range of losses', () => {
    const lines = drawLosses([{ name: 'm', points: points(3000, 8) }], 100).split('\n');
    expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(100);
    expect(lines[0]).toBe('m');
    expect(lines.join('\n')).toMatch(/8\.00┤[^]*2\.9\d┤/);
    expect(lines.some((line) => /^ +1 .* 1,001 .* 2,000 .* 3,000$/.test(line))).toBe(true);
    expect(lines.join('\n').match(/●/g)?.length).toBeGreaterThan(10);
  });

  it('shows two runs side by side with equal losses at the same height', () => {
    const runs = [
      { name: 'm', points: points(100, 8) },
      { name: 'n', points: points(100, 4) },
    ];
    const lines = drawLosses(runs, 100).split('\n');
    expect(Math.max(...lines.map((line) => line.length))).toBeLessThanOrEqual(100);
    expect(lines[0]).toMatch(/^m +n$/);
    const labelled = lines.filter((line) => line.includes('┤'));
    expect(labelled.length).toBeGreaterThan(3);
    for (const line of labelled) {
      const labels = [...line.matchAll(/([\d.]+)┤/g)].map(([, label]) => label);
      expect(labels).toEqual([labels[0], labels[0]]);
    }
  });

  it('says so when there is nothing to draw', () => {
    expect(drawLosses([{ name: 'm', points: [] }], 80)).toBe('There are no losses to draw yet.');
    const flat = [{ ...NOTHING, jobId: 'j', step: 1, at: 0, loss: 2, valLoss: null }];
    expect(drawLosses([{ name: 'm', points: flat }], 80)).toContain('2.00┤');
  });
});
