// `npm run bench:engines` gives both engines the same work in one run, turn by turn, as one stage does it: a transformer block
// forward and backward, a training step of a small model, and decoding with that model. As in the daemon, ONNX Runtime takes a
// second thread for the head and for decoding, and TensorFlow.js has one. `--tiny` runs everything once with small sizes, and
// `--turns N` repeats.

import './no-reports.js';
import { parseArgs } from 'node:util';
import {
  blockBackwardProgram,
  blockForwardProgram,
  blockWeightGradientsProgram,
} from '../dist/model/programs/block.js';
import { initialTensors } from '../dist/model/init.js';
import { loadEngine } from '../dist/workers/engines/choice.js';
import { ServeStage } from '../dist/workers/serving/stage.js';
import { median } from './daemon.js';
import { trainingStage } from './stage.js';

const { values } = parseArgs({
  options: { tiny: { type: 'boolean', default: false }, turns: { type: 'string', default: '5' } },
});
const turns = values.tiny ? 1 : Number(values.turns);
const tokenCount = values.tiny ? 8 : 64;
/** The model and the batch: a vocabulary of characters, and one micro-batch a step. */
const CONFIG = values.tiny
  ? { vocab_size: 65, context_length: 64, emb_dim: 32, n_heads: 2, n_layers: 2 }
  : { vocab_size: 65, context_length: 128, emb_dim: 256, n_heads: 4, n_layers: 4 };
const config = { ...CONFIG, drop_rate: 0, qkv_bias: true, tie_weights: false };
const batch = values.tiny ? { B: 1, T: 16 } : { B: 8, T: 128 };
const range = { firstBlock: 0, endBlock: config.n_layers, embeds: true, head: true };
const tensors = new Map([...initialTensors(config, { seed: 1, scheme: 'gpt2' })].map(({ name, data }) => [name, data]));

/** Returns a tensor of small numbers for each of a program's inputs. */
const inputsOf = (graph) =>
  Object.fromEntries(
    graph.inputs.map(({ name, dims }) => {
      const data = new Float32Array(dims.reduce((product, length) => product * length, 1));
      return [name, { data: data.map((_, i) => ((i * 7919) % 1000) / 5000), dims }];
    }),
  );

/**
 * What is timed. `prepare` resolves to a function that does the work once. Work that has a `rate` prints the rate instead of the
 * time.
 */
const WORK = [
  {
    name: `block forward and backward, width ${config.emb_dim}, ${batch.B} x ${batch.T}`,
    prepare: async (engine) => {
      const graphs = [
        blockForwardProgram(config, batch, { save: true }),
        blockBackwardProgram(config, batch),
        blockWeightGradientsProgram(config, batch, { accumulate: false }),
      ];
      const programs = await Promise.all(graphs.map((graph) => engine.compile(graph)));
      const inputs = graphs.map(inputsOf);
      return async () => {
        for (const [i, program] of programs.entries()) await program.run(inputs[i]);
      };
    },
  },
  {
    name: `training step, ${config.n_layers} blocks`,
    prepare: async (engine) => {
      const { B, T } = batch;
      const shape = { batchSize: B, microBatchSize: B, contextLength: T };
      const stage = trainingStage(engine, { config, tensors, ...shape });
      let step = 0;
      return () => stage.step(++step);
    },
  },
  {
    name: `decode ${tokenCount} tokens, one stream`,
    rate: { count: tokenCount, unit: 'tokens/s' },
    prepare: async (engine) => {
      const stage = await ServeStage.load(engine, { config, stage: range, quantization: null }, tensors);
      let sequences = 0;
      return async () => {
        sequences += 1;
        const sequence = `bench-${sequences}`;
        const sampling = { temperature: 0, seed: 1 };
        const begin = { sequence, prompt: [1], continued: [], stopIds: [], sampling, sample: 0 };
        let id = 1;
        for (let position = 0; position < tokenCount; position++) {
          const sample = { index: position, lastIndex: tokenCount - 1, drafts: [], draftMax: 0 };
          const share = { sequence, position, rowCount: 1, fork: null, sample };
          const begins = position === 0 ? [begin] : [];
          const { sampled } = await stage.step({ input: [id], shares: [share], begins });
          id = sampled[0].tokens[0].id;
        }
        stage.end({ sequences: [sequence], keepCaches: false });
      };
    },
  },
];

const engines = await Promise.all(['onnx', 'tensorflow'].map(loadEngine));
for (const { name, version, fingerprint } of engines) console.log(`${name} ${version}: ${fingerprint}`);
for (const { name, rate, prepare } of WORK) {
  const work = [];
  for (const engine of engines) work.push(await prepare(engine));
  const times = engines.map(() => []);
  // The first turn compiles and warms up.
  for (let turn = 0; turn <= turns; turn++) {
    for (const [i, once] of work.entries()) {
      const start = performance.now();
      await once();
      if (turn > 0) times[i].push(performance.now() - start);
    }
  }
  const ms = times.map(median);
  const told = ms.map((value, i) => {
    const shown =
      rate === undefined ? `${value.toFixed(1)} ms` : `${((rate.count * 1000) / value).toFixed(1)} ${rate.unit}`;
    return `${engines[i].name} ${shown}`;
  });
  console.log(`${name}: ${told.join(', ')}; tensorflow takes ${(ms[1] / ms[0]).toFixed(1)} times as long`);
}
