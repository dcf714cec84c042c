// The head in training, on the stage that has it: a micro-batch's loss and backward pass, and the gradients of the head's
// tensors.
// Letters: N rows of a micro-batch, D width, V vocabulary.

import type { Graph } from '../../model/programs/graph.ts';
import {
  headLossProgram,
  headTensorNames,
  headTrainProgram,
  headNormGradientsProgram,
  PROJECTION_TOKENS,
  projectionGradientProgram,
  subtractTargets,
} from '../../model/programs/head.ts';
import type { ArrayPool } from '../memory/reuse.ts';
import type { CompileOptions, Program, Tensor, Tensors } from '../engines/engine.ts';
import type { TrainSetup } from './messages.ts';
import type { HeadActivations } from './flight.ts';
import { gradientTensors, type Parameter } from './parameters.ts';

/** What a stage lends for a micro-batch: its programs, each compiled once for its name, its tensors and its arrays. */
export interface HeadStage {
  readonly setup: TrainSetup;
  /** The number of threads of the programs that work on the projection: see headThreads. */
  readonly threadCount: number;
  /** Whether there are gradients of earlier micro-batches to add to. */
  readonly accumulate: boolean;
  readonly arrays: ArrayPool;
  /** (N): the token that each row is to predict. */
  readonly targets: Uint32Array;
  readonly program: (name: string, graph: () => Graph, options?: CompileOptions) => Promise<Program>;
  readonly parameter: (name: string) => Parameter;
}

const headRows = ({ setup, targets }: HeadStage): { rowCount: number; tokenCount: number } => ({
  rowCount: targets.length,
  tokenCount: setup.batchSize * setup.contextLength,
});

const rows = (data: Float32Array, { targets: { length: N } }: HeadStage): Tensor => ({
  data,
  dims: [N, data.length / N],
});

const whole = ({ w, spec }: Parameter): Tensor => ({ data: w, dims: spec.shape });

function headInputs(stage: HeadStage, x: Float32Array): Tensors {
  const { setup, targets, parameter } = stage;
  const [weight, bias, projection] = headTensorNames(setup.config).map(parameter);
  return {
    x: rows(x, stage),
    target: { data: BigInt64Array.from(targets, BigInt), dims: [targets.length, 1] },
    'ln_f.weight': whole(weight),
    'ln_f.bias': whole(bias),
    projection: whole(projection),
  };
}

/** x (N, D) -> the loss of each row (N). It computes no gradients. */
export async function headLosses(stage: HeadStage, x: Float32Array): Promise<Float32Array> {
  const { config } = stage.setup;
  const program = await stage.program('loss', () => headLossProgram(config, stage.targets.length), {
    threadCount: stage.threadCount,
  });
  const losses = new Float32Array(stage.targets.length);
  await program.run(headInputs(stage, x), { loss: rows(losses, stage) });
  return losses;
}

/** x (N, D) -> the loss of each row (N), dx (N, D), and what `headGradients` needs. */
export async function trainHead(
  stage: HeadStage,
  x: Float32Array,
): Promise<{ losses: Float32Array; dx: Float32Array; saved: HeadActivations['saved'] }> {
  const { setup, arrays } = stage;
  const { config } = setup;
  const N = stage.targets.length;
  const { emb_dim: D, vocab_size: V } = config;
  const program = await stage.program('head', () => headTrainProgram(config, headRows(stage)), {
    threadCount: stage.threadCount,
  });
  const [dx, normalized, dNormalized, probabilities] = [D, D, D, V].map((width) => arrays.take(N * width));
  const losses = new Float32Array(N);
  await program.run(headInputs(stage, x), {
    loss: rows(losses, stage),
    dx: rows(dx, stage),
    normalized: rows(normalized, stage),
    dNormalized: rows(dNormalized, stage),
    probabilities: { data: probabilities, dims: [V, N] },
  });
  return { losses, dx, saved: { probabilities, normalized, dNormalized } };
}

/** Adds a micro-batch's gradients to those of the head's tensors, and gives the micro-batch's arrays back to the pool. */
export async function headGradients(stage: HeadStage, { x, saved }: HeadActivations): Promise<void> {
  const { setup, accumulate, arrays, targets } = stage;
  const { config } = setup;
  const { probabilities, normalized, dNormalized } = saved;
  const [weight, bias, projection] = headTensorNames(config).map(stage.parameter);
  const norm = [weight, bias].map(({ spec: { name, shape }, g }) => ({ name, shape, g }));
  const program = await stage.program(`head gradients ${accumulate ? 'next' : 'first'}`, () =>
    headNormGradientsProgram(config, { rowCount: targets.length, accumulate }),
  );
  await program.run(
    {
      x: rows(x, stage),
      dNormalized: rows(dNormalized, stage),
      'ln_f.weight': whole(weight),
      ...(accumulate ? gradientTensors(norm, 'soFar') : {}),
    },
    gradientTensors(norm, 'gradient'),
  );
  await projectionGradient(stage, projection, { probabilities, normalized });
  subtractTargets(projection.g, { targets, normalized, tokenCount: headRows(stage).tokenCount });
  for (const parameter of [weight, bias, projection]) parameter.begun = true;
  for (const array of [x, probabilities, normalized, dNormalized]) arrays.give(array);
}

async function projectionGradient(
  stage: HeadStage,
  { g, spec }: Parameter,
  { probabilities, normalized }: { probabilities: Float32Array; normalized: Float32Array },
): Promise<void> {
  const { setup, threadCount, accumulate, targets } = stage;
  const [V, D] = spec.shape;
  const N = targets.length;
  const program = await stage.program(
    `projection ${accumulate ? 'next' : 'first'}`,
    () => projectionGradientProgram(setup.config, { ...headRows(stage), accumulate }),
    { threadCount },
  );
  const tokens = PROJECTION_TOKENS * threadCount;
  for (let first = 0; first < V; first += tokens) {
    const end = Math.min(first + tokens, V);
    const gradient = { data: g.subarray(first * D, end * D), dims: [end - first, D] };
    const slice = { data: probabilities.subarray(first * N, end * N), dims: [end - first, N] };
    await program.run(
      { probabilities: slice, normalized: rows(normalized, stage), ...(accumulate ? { soFar: gradient } : {}) },
      { gradient },
    );
  }
}
