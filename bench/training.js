// `npm run bench:train`: training steps beside PyTorch's, as a share of the matmul peak that the same run measured; where a
// step's time goes; one worker against all; what the daemon adds; how a step's time grows. `--tiny` runs everything once at
// toy size; `--turns N` repeats; `--part steps|workers|profile|daemon|growth` takes one of them; `--save` keeps the growth.

import './no-reports.js';
import { parseArgs } from 'node:util';
import { median, withDaemon } from './daemon.js';
import { printPanel, savePanels } from './growth.js';
import { matmulPeak } from './machine.js';
import { profileStep } from './profile.js';
import { benchTraining, prepareTraining, stepFlops, stepSeconds, stepTimes, TINY_TRAINING, TRAINING } from './train.js';

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

/** How long no engine runs between the first step and the last, the way to the first step, and what checkpoints cost. */
async function overheads(daemon) {
  for (const work of values.tiny ? works : [works[0], largest]) {
    const train = await prepareTraining(daemon, work);
    const events = await train();
    const step = median(stepSeconds(events));
    const started = events.find(({ type }) => type === 'started').at;
    const times = stepTimes(events);
    const idle = idleShare(daemon.busy(), { begin: times[0], end: times.at(-1) });
    const first = (times[0] - started) / 1000;
    console.log(
      `${work.name}: no engine runs in ${(100 * idle).toFixed(2)} % of the time between the first step's end and the last one's`,
    );
    console.log(
      `${work.name}: ${first.toFixed(2)} s from the job's start to its first step's end, ${(first - step).toFixed(2)} s without the step`,
    );
  }
  // A checkpoint a minute, of weights and optimizer, over the time without one.
  const train = await prepareTraining(daemon, { ...largest, name: 'saved' });
  const saved = values.tiny ? { steps: 4, 'checkpoint-every': 2 } : { steps: 60, 'checkpoint-every': '60s' };
  const events = await train(saved);
  const seconds = stepSeconds(events);
  const spent = seconds.reduce((sum, value) => sum + value, 0);
  const stalled = spent / (seconds.length * median(seconds)) - 1;
  const count = events.filter(({ type }) => type === 'checkpoint').length;
  console.log(
    `${largest.name} with ${count} checkpoints in ${spent.toFixed(0)} s: ${(100 * stalled).toFixed(1)} % longer than as many median steps`,
  );
}

/** Share of a span in which none of the [begin, end] pairs lies. */
function idleShare(runs, { begin, end }) {
  let [idle, until] = [0, begin];
  for (const [from, to] of runs.toSorted((a, b) => a[0] - b[0])) {
    if (to <= begin || from >= end) continue;
    idle += Math.max(0, from - until);
    until = Math.max(until, to);
  }
  return (idle + Math.max(0, end - until)) / (end - begin);
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
if (all || values.part === 'daemon') await withDaemon(Number(values.workers), overheads, { timed: true });
if (all || values.part === 'growth') await withDaemon(Number(values.workers), growth);
