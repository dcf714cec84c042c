// Trains a whole model on the calling thread, and checks it against PyTorch's numbers and against itself in other layouts.

import { describe, expect, test } from 'vitest';
import type { GptConfig } from '../../../src/model/config.ts';
import { initialTensors } from '../../../src/model/init.ts';
import { tensorTable } from '../../../src/model/tensors.ts';
import type { Engine } from '../../../src/workers/engines/engine.ts';
import { loadEngine } from '../../../src/workers/engines/choice.ts';
import {
  gradientUnits,
  loanArrays,
  updateUnits,
  type MicroBatch,
  type StageRange,
  type TrainSetup,
  type GradientLoan,
} from '../../../src/workers/training/messages.ts';
import { transferList } from '../../../src/workers/reply.ts';
import { TrainStage } from '../../../src/workers/training/stage.ts';
import { flatTokens, golden, GOLDEN_NAMES, l2, relative, type Golden } from '../../golden/golden.ts';

interface RunOptions {
  readonly engine: Engine;
  readonly microBatchSize: number;
  /** The block at which each stage ends; there is one stage by default. */
  readonly ends?: readonly number[];
  readonly config?: Partial<GptConfig>;
  readonly steps?: number;
  /** Whether the next stage computes the weight gradients of each stage's blocks. */
  readonly lends?: boolean;
}

interface Run {
  readonly losses: number[];
  readonly norms: number[];
  readonly firstGradients: Map<string, Float32Array>;
  readonly weights: Map<string, Float32Array>;
}

function stageRanges(config: GptConfig, ends: readonly number[]): StageRange[] {
  return ends.map((endBlock, i) => {
    const [first, last] = [i === 0, i === ends.length - 1];
    return { firstBlock: first ? 0 : ends[i - 1], endBlock, embeds: config.tie_weights ? last : first, head: last };
  });
}

/** Returns the loan as it arrives on another thread. The arrays leave this side. */
const moved = (loan: GradientLoan): GradientLoan => structuredClone(loan, { transfer: transferList(loanArrays(loan)) });

async function train(reference: Golden, options: RunOptions): Promise<Run> {
  const config = { ...reference.config, ...options.config };
  const batchSize = reference.tokens[0].length;
  const T = reference.tokens[0][0].length - 1;
  const flat = flatTokens(reference);
  const tokens = new SharedArrayBuffer(flat.byteLength);
  new Uint16Array(tokens).set(flat);
  const initial = new Map(
    [...initialTensors(config, { seed: reference.seed, scheme: 'torch' })].map(({ name, data }) => [name, data]),
  );
  const setup: Omit<TrainSetup, 'stage'> = {
    config,
    batchSize,
    microBatchSize: options.microBatchSize,
    contextLength: T,
    seed: 7,
    tokens,
    wideTokens: false,
    optimizerState: false,
  };
  const ranges = stageRanges(config, options.ends ?? [config.n_layers]);
  const stages = ranges.map(
    (stage) => new TrainStage(options.engine, { ...setup, stage }, ({ name }, _, into) => into.set(initial.get(name)!)),
  );
  const embedder = config.tie_weights ? stages.at(-1)! : stages[0];
  const run: Run = { losses: [], norms: [], firstGradients: new Map(), weights: new Map() };
  const { optimizer } = reference;
  for (let step = 0; step < (options.steps ?? reference.tokens.length); step++) {
    let loss = 0;
    for (let index = 0; index * options.microBatchSize < batchSize; index++) {
      const firstSequence = index * options.microBatchSize;
      const starts = Array.from(
        { length: options.microBatchSize },
        (_, i) => (step * batchSize + firstSequence + i) * (T + 1),
      );
      const micro: MicroBatch = { index, step: step + 1, firstSequence, starts };
      let x: Float32Array | null = embedder.embed(micro, { train: true });
      for (const stage of stages) {
        const { y, losses } = await stage.forward(micro, x!);
        for (const row of losses ?? []) loss += row;
        x = y;
      }
      let dy: Float32Array | null = null;
      for (const [i, stage] of [...stages.entries()].toReversed()) {
        dy = await stage.backward(micro, dy);
        for (const unit of gradientUnits(ranges[i])) {
          if (options.lends !== true || unit === 'head') {
            await stage.weightGradients(micro, unit);
            continue;
          }
          const loan = moved(stage.lend(micro, unit));
          stage.takeBack(unit, await stages[(i + 1) % stages.length].lentWeightGradients(loan));
        }
      }
      embedder.embedBackward(micro, dy!);
    }
    const squares = new Map(
      stages.flatMap((stage) => stage.finish()).map((entry) => [entry.tensor, entry.sumOfSquares]),
    );
    const norm = Math.sqrt(tensorTable(config).reduce((sum, { name }) => sum + squares.get(name)!, 0));
    if (step === 0) {
      for (const stage of stages)
        for (const name of stage.parameters.keys()) run.firstGradients.set(name, stage.gradient(name).slice());
    }
    run.losses.push(loss / (batchSize * T));
    run.norms.push(norm);
    const clip = optimizer.grad_clip;
    const { lr, beta1, beta2, eps, weight_decay: weightDecay } = optimizer;
    const gradScale = clip > 0 && norm > clip ? clip / (norm + 1e-6) : 1;
    const adamw = { step: step + 1, lr, weightDecay, gradScale, beta1, beta2, eps };
    const request = { step: adamw, decayAll: optimizer.decay === 'all' };
    for (const [i, { optimizer }] of stages.entries()) {
      for (const unit of updateUnits(ranges[i])) expect(optimizer.update(request, unit)).toBe(true);
    }
  }
  for (const stage of stages) {
    for (const [name, { w }] of stage.parameters) run.weights.set(name, w.slice());
    await stage.close();
  }
  return run;
}

const ENGINES = [await loadEngine('onnx'), await loadEngine('tensorflow-wasm')];
const CASES = ENGINES.flatMap((engine) => GOLDEN_NAMES.map((name) => [name, engine.name, engine] as const));

describe.each(CASES)('PyTorch run %s on %s', (name, _, engine) => {
  const reference = golden(name);
  const batchSize = reference.tokens[0].length;

  test('losses, gradient norms, gradients and weights agree', async () => {
    const run = await train(reference, { engine, microBatchSize: batchSize });
    for (const [step, loss] of reference.loss.entries()) {
      expect(relative(run.losses[step], loss), `loss of step ${step}`).toBeLessThan(1e-5);
      expect(relative(run.norms[step], reference.gradNorm[step]), `norm of step ${step}`).toBeLessThan(1e-4);
    }
    for (const [tensor, { first, l2: norm }] of Object.entries(reference.gradients)) {
      const gradient = run.firstGradients.get(tensor)!;
      expect(relative(l2(gradient), norm), `gradient of ${tensor}`).toBeLessThan(1e-4);
      const scale = norm / Math.sqrt(gradient.length);
      for (const [i, value] of first.entries()) expect(Math.abs(gradient[i] - value)).toBeLessThan(1e-3 * scale + 1e-7);
    }
    for (const [tensor, { l2: norm }] of Object.entries(reference.weights)) {
      expect(relative(l2(run.weights.get(tensor)!), norm), `weights of ${tensor}`).toBeLessThan(1e-4);
    }
  });

  test('every split into stages gives the same bits, dropout on', async () => {
    const options = { engine, microBatchSize: 1, steps: 3, config: { drop_rate: 0.2 } };
    const whole = await train(reference, options);
    const layers = reference.config.n_layers;
    const splits = [[1, layers], Array.from({ length: layers }, (_, i) => i + 1)];
    for (const ends of splits) {
      const split = await train(reference, { ...options, ends });
      expect(split.losses).toEqual(whole.losses);
      expect(split.norms).toEqual(whole.norms);
      for (const [tensor, data] of whole.weights) expect(split.weights.get(tensor), tensor).toEqual(data);
    }
  });

  test('weight gradients that another stage computes have the same bits', async () => {
    const options = { engine, microBatchSize: 1, steps: 2, ends: [1, reference.config.n_layers] };
    const [own, lent] = [await train(reference, options), await train(reference, { ...options, lends: true })];
    expect(lent.norms).toEqual(own.norms);
    for (const [tensor, data] of own.weights) expect(lent.weights.get(tensor), tensor).toEqual(data);
  });

  test('micro-batches add up to the batch', async () => {
    const [whole, parts] = [
      await train(reference, { engine, microBatchSize: batchSize, steps: 4 }),
      await train(reference, { engine, microBatchSize: 1, steps: 4 }),
    ];
    for (const [step, loss] of whole.losses.entries()) {
      expect(relative(parts.losses[step], loss)).toBeLessThan(2e-6);
      expect(relative(parts.norms[step], whole.norms[step])).toBeLessThan(1e-5);
    }
  });
});

test('the first micro-batch of a wide model goes forward on two threads where stages behind it wait for it', async () => {
  const threads: number[] = [];
  const [onnx] = ENGINES;
  const counting: Engine = {
    ...onnx,
    compile: (graph, options) => {
      if (graph.name === 'block forward') threads.push(options?.threadCount ?? 1);
      return onnx.compile(graph, options);
    },
  };
  const wide = { config: { emb_dim: 256, n_heads: 4 } };
  const options = { engine: counting, microBatchSize: 1, steps: 2 };
  const reference = golden(GOLDEN_NAMES[0]);
  const ends = [1, reference.config.n_layers];
  await train(reference, { ...options, ends });
  expect(threads.splice(0)).toEqual([1, 1]);
  const whole = await train(reference, { ...options, ...wide });
  expect(threads.splice(0)).toEqual([1]);
  const split = await train(reference, { ...options, ...wide, ends });
  expect(threads.toSorted((a, b) => a - b)).toEqual([1, 1, 2]);
  expect(split.norms).toEqual(whole.norms);
  for (const [tensor, data] of whole.weights) expect(split.weights.get(tensor), tensor).toEqual(data);
});

test('evaluation leaves the memory of the moments alone', async () => {
  const config: GptConfig = {
    vocab_size: 40_000,
    context_length: 8,
    emb_dim: 256,
    n_heads: 2,
    n_layers: 1,
    drop_rate: 0,
    qkv_bias: false,
    tie_weights: false,
  };
  const setup = {
    batchSize: 1,
    microBatchSize: 1,
    contextLength: 8,
    seed: 1,
    wideTokens: false,
    optimizerState: false,
  };
  const tokens = new SharedArrayBuffer(18);
  const range = { firstBlock: 0, endBlock: 1, embeds: true, head: true };
  const before = process.memoryUsage.rss();
  const stage = new TrainStage(ENGINES[0], { ...setup, config, tokens, stage: range }, (_, __, into) =>
    into.fill(0.01),
  );
  const micro: MicroBatch = { index: 0, step: 0, firstSequence: 0, starts: [0] };
  await stage.evaluate(micro, stage.embed(micro, { train: false }));
  const weightsBytes = [...stage.parameters.values()].reduce((sum, { w }) => sum + w.byteLength, 0);
  // The head's programs copy some of the weights.
  expect(process.memoryUsage.rss() - before).toBeLessThan(2 * weightsBytes);
  await stage.close();
});
