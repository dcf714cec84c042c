// `npm run bench:train` measures training steps beside PyTorch's, as a share of the matmul peak that the same run measures. Then
// it shows where a step's time goes, compares one worker with all, and shows what the daemon adds and how a step's time grows.
// `--tiny` runs everything once at toy size; `--turns N` repeats; `--part steps|workers|profile|daemon|growth` runs one part;
// `--save` keeps the growth.

import './no-reports.js';
import { parseArgs } from 'node:util';
import { median, withDaemon } from './daemon.js';
import { printPanel, savePanels } from './growth.js';
import { matmulPeak } from './machine.js';
import { profileStep } from './profile.js';
import {
  benchTraining,
  prepareTraining,
  reportTraining,
  stepSeconds,
  stepTimes,
  TINY_TRAINING,
  TRAINING,
} from './train.js';

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
const percent = (share) => `${(100 * share).toFixed(1)} %`;

/** Compares one worker with all. Each number of workers has a daemon of its own, one after the other. */
async function compareWorkers() {
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

/** Prints the time by kind of work on one thread, then what the workers of a daemon spend their time on. */
async function profile(daemon) {
  const kinds = await profileStep(largest);
  const told = kinds.map(({ kind, share }) => `${kind} ${percent(share)}`);
  console.log(`${largest.name}, time in programs on one thread: ${told.join(', ')}`);
  const times = stepTimes(await (await prepareTraining(daemon, largest))());
  const span = { begin: times[0], end: times.at(-1) };
  const shares = workersOf(daemon.busy()).map(({ runs, waits }) => ({
    programs: covered(runs, span),
    waiting: covered(waits, span),
  }));
  for (const [i, { programs, waiting }] of shares.entries()) {
    const rest = percent(1 - programs - waiting);
    const parts = `programs ${percent(programs)}, waiting ${percent(waiting)}, JavaScript between ${rest}`;
    console.log(`${largest.name}, worker ${i + 1} of ${shares.length}: ${parts}`);
  }
}

/**
 * Prints how long all workers wait between the first step and the last, how long the first step takes to come, and what
 * checkpoints cost.
 */
async function overheads(daemon) {
  for (const work of values.tiny ? works : [works[0], largest]) {
    const train = await prepareTraining(daemon, work);
    const events = await train();
    const step = median(stepSeconds(events));
    const started = events.find(({ type }) => type === 'started').at;
    const times = stepTimes(events);
    const span = { begin: times[0], end: times.at(-1) };
    const workers = workersOf(daemon.busy());
    const idle = covered(workers.map(({ waits }) => waits).reduce(overlap), span);
    const noEngine =
      1 -
      covered(
        workers.flatMap(({ runs }) => runs),
        span,
      );
    const first = (times[0] - started) / 1000;
    console.log(
      `${work.name}: between the first step's end and the last one's all workers wait in ${percent(idle)} of the time, no engine runs in ${percent(noEngine)}`,
    );
    console.log(
      `${work.name}: ${first.toFixed(2)} s from the job's start to its first step's end, ${(first - step).toFixed(2)} s without the step`,
    );
  }
  // Checkpoints of weights and optimizer are written every minute. The time without them is as many median steps.
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

/** Returns the runs and the waits of each thread that runs anything. */
function workersOf(spans) {
  const threads = new Set(spans.filter(({ kind }) => kind === 'run').map(({ thread }) => thread));
  return [...threads].map((worker) => {
    const of = (wanted) => spans.filter(({ thread, kind }) => thread === worker && kind === wanted);
    return { runs: of('run'), waits: of('wait') };
  });
}

/** Returns the spans in which `a` and `b` overlap. Neither list may have overlaps within itself. */
function overlap(a, b) {
  const both = [];
  let from = 0;
  for (const { begin, end } of a) {
    while (from < b.length && b[from].end <= begin) from += 1;
    for (let i = from; i < b.length && b[i].begin < end; i++) {
      both.push({ begin: Math.max(begin, b[i].begin), end: Math.min(end, b[i].end) });
    }
  }
  return both;
}

/** Returns the share of `{begin, end}` that at least one of `spans` covers. */
function covered(spans, { begin, end }) {
  let [sum, until] = [0, begin];
  for (const { begin: from, end: to } of spans.toSorted((a, b) => a.begin - b.begin)) {
    sum += Math.max(0, Math.min(to, end) - Math.max(from, until));
    until = Math.max(until, to);
  }
  return sum / (end - begin);
}

/** Begins with one shape, and doubles each of its measures twice, one measure at a time. */
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
if (all || values.part === 'steps') {
  const peak = await matmulPeak(2);
  console.log(`f32 matmul peak: ${peak.toFixed(0)} GFLOPS on 2 threads`);
  await withDaemon(Number(values.workers), (daemon) => reportTraining(daemon, works, { turns, peak }));
}
if (all || values.part === 'workers') await compareWorkers();
if (all || values.part === 'profile') await withDaemon(Number(values.workers), profile, { timed: true });
if (all || values.part === 'daemon') await withDaemon(Number(values.workers), overheads, { timed: true });
if (all || values.part === 'growth') await withDaemon(Number(values.workers), growth);
