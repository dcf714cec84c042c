// Loads a model of 33 M weights for serving in a format, as a stage's thread does when no quantized weights are stored, and
// prints by how many bytes the process's largest resident size grew. The arguments are the folder of the built program, the
// format and the configuration.

import { existsSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { pathToFileURL } from 'node:url';

const [dist, quantization, config] = [process.argv[2], JSON.parse(process.argv[3]), JSON.parse(process.argv[4])];
const load = (file) => import(pathToFileURL(path.join(dist, file)).href);
const { ServeStage } = await load('workers/serving/stage.js');
const { servedWeights } = await load('workers/serving/served-weights.js');
const { loadEngine } = await load('workers/engines/choice.js');
const { tensorTable } = await load('model/tensors.js');
const engine = await loadEngine('onnx');

async function serve(settings) {
  const sizes = new Map(tensorTable(settings).map(({ name, size }) => [name, size]));
  const reader = { readTensor: ({ tensor }) => new Float32Array(sizes.get(tensor)).fill(0.01), readMade: () => null };
  const weights = servedWeights(reader, { checkpointId: 1, config: settings });
  const range = { firstBlock: 0, endBlock: settings.n_layers, embeds: true, head: true };
  const stage = await ServeStage.load(engine, { config: settings, stage: range, quantization }, weights);
  return { stage, made: weights.made() };
}

/** Returns the largest resident size in bytes. `maxRSS` will not do on Linux, where it counts the parent's size at the fork. */
function peak() {
  if (!existsSync('/proc/self/status')) return 1024 * process.resourceUsage().maxRSS;
  return 1024 * Number(/VmHWM:\s+(\d+)/.exec(readFileSync('/proc/self/status', 'utf8'))[1]);
}

// This small model makes the engine take its own memory before the measurement.
const held = [await serve({ ...config, vocab_size: 64, emb_dim: 64 })];
const before = peak();
held.push(await serve(config));
console.log(peak() - before);
process.exit(held.length === 2 ? 0 : 1);
