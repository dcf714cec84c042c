// Shows how a figure grows. A panel holds one or more series over the same steps. It is printed to the terminal as text, and kept
// in bench/growth as a table and a plot.

import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';

const FOLDER = fileURLToPath(new URL('growth/', import.meta.url));
const BAR_WIDTH = 40;
const PANEL = { width: 360, height: 240, left: 56, right: 12, top: 50, bottom: 42 };
const COLORS = ['#1f6feb', '#d1570a', '#1a7f37'];

const shown = (value) => (value >= 100 || value === 0 ? value.toFixed(0) : value.toPrecision(3));

/**
 * Prints a panel: `{title, unit, over, steps, series: [{name, values}]}`, where each series has a value for each step.
 */
export function printPanel({ title, unit, over, steps, series }) {
  const largest = Math.max(...series.flatMap(({ values }) => values));
  for (const { name, values } of series) {
    console.log(`${title}, ${name} (${unit} by ${over})`);
    for (const [i, value] of values.entries()) {
      const bar = '#'.repeat(Math.round((BAR_WIDTH * value) / largest));
      console.log(`  ${String(steps[i]).padEnd(12)} ${shown(value).padStart(8)} ${bar}`);
    }
  }
}

/** Writes the plot, `name.svg`, and the table, `name.md`. */
export function savePanels(name, { heading, panels }) {
  mkdirSync(FOLDER, { recursive: true });
  const width = PANEL.width * panels.length;
  const drawn = panels.map((panel, i) => `<g transform="translate(${i * PANEL.width} 0)">${drawPanel(panel)}</g>`);
  const style = 'text { font: 11px sans-serif; fill: #444 } .title { font-weight: bold; font-size: 13px }';
  const head = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${width} ${PANEL.height}" width="${width}" height="${PANEL.height}">`;
  const parts = [head, `<style>${style}</style>`, '<rect width="100%" height="100%" fill="#fff"/>', ...drawn, '</svg>'];
  writeFileSync(path.join(FOLDER, `${name}.svg`), `${parts.join('\n')}\n`);
  const tables = panels.map(({ title, unit, over, steps, series }) => {
    const rows = [
      [over, ...series.map((one) => `${one.name}, ${unit}`)],
      ['---', ...series.map(() => '---:')],
      ...steps.map((step, i) => [step, ...series.map(({ values }) => shown(values[i]))]),
    ];
    return `## ${title}\n\n${rows.map((cells) => `| ${cells.join(' | ')} |`).join('\n')}\n`;
  });
  writeFileSync(path.join(FOLDER, `${name}.md`), `# ${heading}\n\n![the plot](${name}.svg)\n\n${tables.join('\n')}`);
}

/** Returns the panel as SVG. The steps are at equal distances, and the axis of values begins at zero. */
function drawPanel({ title, unit, over, steps, series }) {
  const { width, height, left, right, top, bottom } = PANEL;
  const largest = Math.max(...series.flatMap(({ values }) => values));
  const x = (i) => left + ((width - left - right) * (i + 0.5)) / steps.length;
  const y = (value) => height - bottom - ((height - top - bottom) * value) / largest;
  const text = (at, content, more = '') => `<text x="${at[0]}" y="${at[1]}" ${more}>${content}</text>`;
  const grid = [0, 0.5, 1].flatMap((share) => {
    const at = y(share * largest);
    return [
      `<path d="M${left} ${at}H${width - right}" stroke="#ddd"/>`,
      text([left - 6, at + 4], shown(share * largest), 'text-anchor="end"'),
    ];
  });
  const lines = series.flatMap(({ name, values }, s) => {
    const points = values.map((value, i) => `${x(i).toFixed(1)},${y(value).toFixed(1)}`);
    return [
      `<polyline points="${points.join(' ')}" fill="none" stroke="${COLORS[s]}" stroke-width="2"/>`,
      ...points.map(
        (point) => `<circle cx="${point.split(',')[0]}" cy="${point.split(',')[1]}" r="3" fill="${COLORS[s]}"/>`,
      ),
      text([width - right, top - 20 + 13 * s], name, `text-anchor="end" style="fill: ${COLORS[s]}"`),
    ];
  });
  const labels = steps.map((step, i) => text([x(i).toFixed(1), height - bottom + 16], step, 'text-anchor="middle"'));
  return [
    text([left, 16], `${title} (${unit})`, 'class="title"'),
    ...grid,
    ...lines,
    ...labels,
    text([(left + width - right) / 2, height - 8], over, 'text-anchor="middle"'),
  ].join('\n');
}
