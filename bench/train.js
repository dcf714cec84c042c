// Times a training step through the whole daemon. PyTorch does the same work in the same run, turn by turn.

import { execFileSync } from 'node:child_process';
import { writeFileSync } from 'node:fs';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { createModel, flagsOf, median } from './daemon.js';

const PYTHON = '/usr/bin/python3';
const PEER = fileURLToPath(new URL('peer_torch.py', import.meta.url));

/** The work: a model, a batch, and the number of steps in a turn. The first step of a turn does not count. */
export const TRAINING = [
  { name: 'char', vocab: 65, context: 256, width: 384, heads: 6, layers: 6, batch: 8, steps: 8 },
  { name: 'small', vocab: 50257, context: 128, width: 256, heads: 4, layers: 4, batch: 8, steps: 8 },
  {
    name: '124m',
    vocab: 50257,
    context: 256,
    width: 768,
    heads: 12,
    layers: 12,
    batch: 4,
    steps: 4,
    modelContext: 1024,
  },
];
export const TINY_TRAINING = [
  { name: 'tiny', vocab: 65, context: 32, width: 32, heads: 2, layers: 2, batch: 4, steps: 4 },
];

/** Returns PyTorch's seconds of each step: null where PyTorch is not installed, an empty list where it has no optimized BLAS. */
function torchSeconds({ vocab, context, width, heads, layers, batch, steps }) {
  const env = { ...process.env, OMP_NUM_THREADS: '2', OPENBLAS_NUM_THREADS: '2' };
  delete env.OPENBLAS_CORETYPE;
  delete env.OPENBLAS_L2_SIZE;
  try {
    const args = [PEER, ...[vocab, context, width, heads, layers, batch, steps].map(String)];
    const output = execFileSync(PYTHON, args, { env, stdio: ['ignore', 'pipe', 'ignore'] });
    return JSON.parse(output.toString()).seconds.slice(1);
  } catch {
    return null;
  }
}

/**
 * Returns the floating-point operations of a step's matrix products. Each weight but the embeddings takes part in three products,
 * forward and backward. Attention's two products count over the whole square of positions, as they are computed.
 */
const stepFlops = ({ vocab, context, width, layers, batch }) =>
  batch * context * (6 * (12 * width * width * layers + vocab * width) + 12 * context * width * layers);

/**
 * Creates the model that `work` trains. Resolves to a function that trains it, takes more flags and resolves to the job's events.
 */
export async function prepareTraining(daemon, work) {
  const { name, vocab, context, batch, steps } = work;
  const data = path.join(daemon.folder, `${name}.bin`);
  const tokens = Uint16Array.from(
    { length: steps * batch * (context + 1) },
    (_, i) => (i * 7919 + (i >> 5) * 104729) % vocab,
  );
  writeFileSync(data, tokens);
  await createModel(daemon, name, { ...work, context: work.modelContext ?? context, tokenizer: 'char' });
  const settings = {
    data,
    tokenizer: 'none',
    'val-split': 0,
    stride: context + 1,
    'batch-size': batch,
    'context-length': context,
    steps,
    'checkpoint-every': 0,
  };
  return (more = {}) => daemon.events('train', name, ...flagsOf({ ...settings, ...more }), '--no-shuffle');
}

/** Returns the time at which each step ended, in milliseconds since 1970. */
export const stepTimes = (events) => events.filter(({ type }) => type === 'step').map(({ at }) => at);

/** Returns the seconds of each step but the first. */
export const stepSeconds = (events) => {
  const times = stepTimes(events);
  return times.slice(1).map((at, i) => (at - times[i]) / 1000);
};

/** Times `turns` turns of gptd, and of PyTorch when `peer` is set. Resolves to the medians. */
export async function benchTraining(daemon, work, turns, { peer = true } = {}) {
  const { name, context, batch } = work;
  const train = await prepareTraining(daemon, work);
  const [ours, theirs] = [[], []];
  for (let turn = 0; turn < turns; turn++) {
    ours.push(...stepSeconds(await train()));
    if (peer) theirs.push(torchSeconds(work));
  }
  const seconds = median(ours);
  const torchSteps = theirs.flatMap((steps) => steps ?? []);
  const torch = torchSteps.length > 0 ? median(torchSteps) : null;
  return {
    name,
    seconds,
    tokensPerSecond: (batch * context) / seconds,
    torch,
    ratio: torch === null ? null : torch / seconds,
    isTorchSlow: torch === null && theirs.some((steps) => steps !== null),
  };
}

/**
 * Times each of `works` beside PyTorch, and prints which share of `peak`, the machine's matmul peak in GFLOPS, each one reaches.
 */
export async function reportTraining(daemon, works, { turns, peak }) {
  for (const work of works) {
    const { name, seconds, tokensPerSecond, torch, ratio, isTorchSlow } = await benchTraining(daemon, work, turns);
    const share = stepFlops(work) / seconds / peak / 1e9;
    const missing = isTorchSlow
      ? 'PyTorch has no optimized BLAS here (Debian: libopenblas0-pthread)'
      : 'PyTorch is not installed';
    const peer = torch === null ? missing : `PyTorch ${torch.toFixed(3)} s, ${ratio.toFixed(2)} times as long`;
    const told = `${seconds.toFixed(3)} s a step, ${tokensPerSecond.toFixed(0)} tokens/s`;
    console.log(`train ${name}: ${told}, ${(100 * share).toFixed(0)} % of the peak; ${peer}`);
  }
  console.log(`peak resident memory of the daemon: ${(daemon.peakBytes() / 1e9).toFixed(2)} GB`);
}
