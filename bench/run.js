// `npm run bench` gives a real daemon fixed work, and measures the machine's own limits in the same run. `--tiny` runs everything
// once at toy size, so that the benchmark cannot rot; `--turns N` repeats; `--only train|decode` runs one of the two.

import './no-reports.js';
import { parseArgs } from 'node:util';
import { withDaemon } from './daemon.js';
import { benchDecoding, DECODING, TINY_DECODING } from './decode.js';
import { matmulPeak, readBandwidth } from './machine.js';
import { reportTraining, TINY_TRAINING, TRAINING } from './train.js';

const { values } = parseArgs({
  options: {
    tiny: { type: 'boolean', default: false },
    turns: { type: 'string', default: '3' },
    workers: { type: 'string', default: '2' },
    only: { type: 'string' },
  },
});
const turns = values.tiny ? 1 : Number(values.turns);
const fixed = (value, digits = 1) => value.toFixed(digits);

/** Prints the machine's limits, which may drift during a run. Resolves to the matmul peak of two threads, in GFLOPS. */
const machine = async (when) => {
  const peaks = [await matmulPeak(1), await matmulPeak(2)];
  console.log(
    `machine, ${when}: f32 matmul ${fixed(peaks[0], 0)} GFLOPS on 1 thread, ${fixed(peaks[1], 0)} on 2; reads ${fixed(readBandwidth())} GB/s on 1 thread`,
  );
  return peaks[1];
};

const peak = await machine('before');
await withDaemon(Number(values.workers), async (daemon) => {
  if (values.only !== 'decode') await reportTraining(daemon, values.tiny ? TINY_TRAINING : TRAINING, { turns, peak });
  if (values.only !== 'train') {
    const { name, early, late } = await benchDecoding(daemon, values.tiny ? TINY_DECODING : DECODING, turns);
    console.log(
      `decode ${name}: ${fixed(early)} tokens/s early in the context, ${fixed(late)} late, ${fixed((100 * late) / early, 0)} %`,
    );
  }
});
await machine('after');
