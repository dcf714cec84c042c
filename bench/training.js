// `npm run bench:train`: training steps beside PyTorch's, as a share of the matmul peak that the same run measured; where a
// step's time goes; one worker against all; how a step's time grows. `--tiny` runs everything once at toy size;
// `--turns N` repeats; `--part steps|workers|profile|growth` takes one of them; `--save` keeps the growth.

import './no-reports.js';
import { parseArgs } from 'node:util';
import { startDaemon } from './daemon.js';
import { printPanel, savePanels } from './growth.js';
import { matmulPeak } from './machine.js';
import { profileStep } from './profile.js';
import { benchTraining, stepFlops, TINY_TRAINING, TRAINING } from './train.js';

const { values } = parseArgs({
  options: {
    tiny: { type: 'boolean', default: false },
    turns: { type: 'string', default: '1' },
    workers: { type: 'string', default: '2' },
    part: { type: 'string' },
    save: { type: 'boolean', default: false },
  },
});
const turns = Number(values.turns);
const works = values.tiny ? TINY_TRAINING : TRAINING;
const largest = works.at(-1);

async function withDaemon(workers, use) {
  const daemon = await startDaemon(workers);
  try {
    return await use(daemon);
  } finally {
    await daemon.stop();
  }
}

async function steps(daemon) {
  const peak = await matmulPeak(2);
  console.log(`f32 matmul peak: ${peak.toFixed(0)} GFLOPS on 2 threads`);
  for (const work of works) {
    const { name, seconds, tokensPerSecond, ratio } = await benchTraining(daemon, work, turns);
    const share = stepFlops(work) / seconds / peak / 1e9;
    const peer = ratio === null ? 'PyTorch is not installed' : `PyTorch takes ${ratio.toFixed(2)} times as long`;
    const told = `${seconds.toFixed(3)} s a step, ${tokensPerSecond.toFixed(0)} tokens/s`;
    console.log(`${name}: ${told}, ${(100 * share).toFixed(0)} % of the peak; ${peer}`);
  }
  console.log(`peak resident memory of the daemon: ${(daemon.peakBytes() / 1e9).toFixed(2)} GB`);
}

/** Each number of workers has a daemon of its own, one after the other. */
async function workers() {
  const counts = [1, Number(values.workers)];
  const seconds = [];
  for (const count of counts) {
    const timed = await withDaemon(count, (daemon) => benchTraining(daemon, largest, turns, { peer: false }));
    seconds.push(timed.seconds);
  }
  const [one, all] = seconds;
  const told = `${one.toFixed(3)} s on 1 worker, ${all.toFixed(3)} s on ${counts[1]}`;
  console.log(`${largest.name}: ${told}: ${(one / all).toFixed(2)} times as fast`);
}

async function profile() {
  const shares = await profileStep(largest);
  const told = shares.map(({ kind, share }) => `${kind} ${(100 * share).toFixed(1)} %`);
  console.log(`${largest.name}, time in programs on one thread: ${told.join(', ')}`);
}

/** From one shape, each measure doubled twice by itself. */
async function growth(daemon) {
  const base = values.tiny
    ? { ...TINY_TRAINING[0], steps: 2 }
    : { vocab: 256, context: 128, width: 256, heads: 4, layers: 4, batch: 8, steps: 6 };
  const panels = [];
  for (const measure of ['layers', 'width', 'context', 'batch']) {
    const steps = (values.tiny ? [1] : [1, 2, 4]).map((factor) => base[measure] * factor);
    const times = [];
    for (const size of steps) {
      const work = { ...base, [measure]: size, name: `${measure}-${size}` };
      times.push(1000 * (await benchTraining(daemon, work, turns, { peer: false })).seconds);
    }
    const { layers, width, context, batch } = base;
    const others = Object.entries({ layers, width, context, batch }).filter(([name]) => name !== measure);
    const series = [{ name: others.map((entry) => entry.join(' ')).join(', '), values: times }];
    panels.push({ title: `A step by ${measure}`, unit: 'ms', over: measure, steps, series });
  }
  for (const panel of panels) printPanel(panel);
  if (values.save) savePanels('training', { heading: 'How a training step grows', panels });
}

const all = values.part === undefined;
if (all || values.part === 'steps') await withDaemon(Number(values.workers), steps);
if (all || values.part === 'workers') await workers();
if (all || values.part === 'profile') await profile();
if (all || values.part === 'growth') await withDaemon(Number(values.workers), growth);
