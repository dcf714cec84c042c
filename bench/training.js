// `npm run bench:train`: training steps beside PyTorch's, as a share of the matmul peak that the same run measured; where a
// step's time goes; one worker against all; how a step's time grows. `--tiny` runs everything once at toy size;
// `--turns N` repeats; `--part steps|workers|profile|growth` takes one of them.

import './no-reports.js';
import { parseArgs } from 'node:util';
import { startDaemon } from './daemon.js';
import { matmulPeak } from './machine.js';
import { profileStep } from './profile.js';
import { benchTraining, stepFlops, TINY_TRAINING, TRAINING } from './train.js';

const { values } = parseArgs({
  options: {
    tiny: { type: 'boolean', default: false },
    turns: { type: 'string', default: '1' },
    workers: { type: 'string', default: '2' },
    part: { type: 'string' },
  },
});
const turns = Number(values.turns);
const works = values.tiny ? TINY_TRAINING : TRAINING;
const largest = works.at(-1);
const BAR_WIDTH = 40;

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
    : { vocab: 256, context: 64, width: 128, heads: 2, layers: 2, batch: 4, steps: 6 };
  const rows = [];
  for (const measure of ['layers', 'width', 'context', 'batch']) {
    for (const factor of values.tiny ? [1] : [1, 2, 4]) {
      const work = { ...base, [measure]: base[measure] * factor, name: `${measure}-${base[measure] * factor}` };
      const { seconds } = await benchTraining(daemon, work, turns, { peer: false });
      rows.push({ name: work.name, seconds });
    }
  }
  const longest = Math.max(...rows.map(({ seconds }) => seconds));
  for (const { name, seconds } of rows) {
    const bar = '#'.repeat(Math.round((BAR_WIDTH * seconds) / longest));
    console.log(`${name.padEnd(12)} ${(1000 * seconds).toFixed(1).padStart(8)} ms ${bar}`);
  }
}

const all = values.part === undefined;
if (all || values.part === 'steps') await withDaemon(Number(values.workers), steps);
if (all || values.part === 'workers') await workers();
if (all || values.part === 'profile') await profile();
if (all || values.part === 'growth') await withDaemon(Number(values.workers), growth);
