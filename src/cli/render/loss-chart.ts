// Loss curves as text. Each run has a panel, the panels of two runs stand side by side, and equal losses have the same height in
// all panels. simple-ascii-chart draws the curves, which are thinned here to what a terminal can show. All functions are pure:
// points go in and text comes out.

import { plot } from 'simple-ascii-chart';
import type { HistoryPoint } from '../../daemon/protocol/history.ts';
import { formatCount } from './records.ts';

const HEIGHT = 16;
const PANEL_GAP = '   ';
/** The number of columns that the axis and its labels take. */
const AXIS_COLUMNS = 10;
const PANEL_COLUMNS_MIN = 24;
const X_TICKS = 4;
const Y_TICKS = 5;

export interface LossRun {
  readonly name: string;
  readonly points: readonly HistoryPoint[];
}

type Curve = readonly (readonly [step: number, loss: number])[];

/**
 * Returns a panel for each run that has losses, together `columns` wide unless that is too narrow. The line is the training loss,
 * and the dots are validation losses.
 */
export function drawLosses(runs: readonly LossRun[], columns: number): string {
  const panelColumns = Math.floor((columns - PANEL_GAP.length * (runs.length - 1)) / runs.length);
  const width = Math.max(PANEL_COLUMNS_MIN, panelColumns) - AXIS_COLUMNS;
  const curves = runs.map(({ points }) => ({
    training: thinned(curveOf(points, 'loss'), width),
    validation: thinned(curveOf(points, 'valLoss'), width),
  }));
  const all = curves.flatMap(({ training, validation }) => [...training, ...validation]);
  if (all.length === 0) return 'There are no losses to draw yet.';
  const range = (values: readonly number[]): [number, number] => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    return low === high ? [low, low + 1] : [low, high];
  };
  const y = range(all.map(([, loss]) => loss));
  const panels = curves.map(({ training, validation }, i) => {
    // Points alone draw nothing, so without a training curve the validation losses are the line.
    const line = training.length > 0 ? training : validation;
    const steps = line.map(([step]) => step);
    return plot(
      line.map(([step, loss]) => [step, loss]),
      {
        width,
        height: HEIGHT,
        yRange: y,
        title: runs[i].name,
        xLabel: 'step',
        customXAxisTicks: ticks(range(steps), X_TICKS).map(Math.round),
        customYAxisTicks: ticks(y, Y_TICKS),
        points: training.length > 0 ? validation.map(([step, loss]) => ({ x: step, y: loss })) : [],
        formatter: (value, { axis }) => (axis === 'x' ? formatCount(value) : value.toFixed(2)),
      },
    );
  });
  return beside(panels);
}

function curveOf(points: readonly HistoryPoint[], field: 'loss' | 'valLoss'): Curve {
  return points.flatMap((point) => {
    const value = point[field];
    return value === null ? [] : [[point.step, value] as const];
  });
}

/** Returns at most `count` points. Neighbours become their mean, and the first and the last step stay where they are. */
function thinned(curve: Curve, count: number): Curve {
  if (curve.length <= count) return curve;
  return Array.from({ length: count }, (_, i) => {
    const part = curve.slice(Math.floor((i * curve.length) / count), Math.floor(((i + 1) * curve.length) / count));
    const mean = (index: 0 | 1): number => part.reduce((sum, point) => sum + point[index], 0) / part.length;
    const step = i === 0 ? curve[0][0] : i === count - 1 ? curve[curve.length - 1][0] : Math.round(mean(0));
    return [step, mean(1)] as const;
  });
}

const ticks = ([low, high]: readonly [number, number], count: number): number[] =>
  Array.from({ length: count }, (_, i) => low + ((high - low) * i) / (count - 1));

/** Puts blocks of lines next to each other. */
function beside(blocks: readonly string[]): string {
  const lines = blocks.map((block) => block.split('\n'));
  const widths = lines.map((block) => Math.max(...block.map((line) => line.length)));
  const height = Math.max(...lines.map((block) => block.length));
  return Array.from({ length: height }, (_, row) =>
    lines
      .map((block, i) => (block.at(row) ?? '').padEnd(widths[i]))
      .join(PANEL_GAP)
      .trimEnd(),
  )
    .join('\n')
    .replace(/^\n+|\n+$/g, '');
}
