// The end of the model: the final norm, the output projection and the mean cross-entropy. Training has separate programs for the
// gradient of the rows and the gradients of the weights, so that the former is sent to the blocks before time is spent on the
// latter. The gradient of the logits is (softmax - onehot(target)) / tokenCount. The one-hot term selects a single row in each
// product, so it is subtracted from the products and never from the logits' gradient.
// Letters: N rows, D width, V vocabulary.

import type { GptConfig } from '../config.ts';
import { countMatrices } from '../count.ts';
import { projectionName } from '../tensors.ts';
import { headForward, type HeadLayers } from './forward.ts';
import { GraphBuilder, type Graph, type Value } from './graph.ts';
import { layerNormBackward, layerNormScaleGradient, rowSum } from './layers.ts';

/** The tensors that the head reads. */
export const headTensorNames = (config: GptConfig): readonly [string, string, string] => [
  'ln_f.weight',
  'ln_f.bias',
  projectionName(config),
];

/**
 * The number of threads of the head's programs. No split into stages divides the head, so a head that costs more than all the
 * blocks together also takes the core that the blocks leave idle. The number of threads changes the result's bits, so it depends
 * on the model alone, never on the machine or the layout.
 */
export function headThreads(config: GptConfig): number {
  const { block, head } = countMatrices(config);
  return head > block * config.n_layers ? 2 : 1;
}

/** What headTrainProgram leaves for the weights' gradients: softmax (V, N), normalized rows (N, D) and their gradient (N, D). */
export const HEAD_SAVED = ['probabilities', 'normalized', 'dNormalized'] as const;

interface HeadInputs extends HeadLayers {
  readonly normWeight: Value;
  readonly projection: Value;
}

/** Returns the head's layers, with the head's tensors as inputs of the program. */
function headInputs(g: GraphBuilder, { emb_dim: D, vocab_size: V }: GptConfig): HeadInputs {
  const norm = { 'ln_f.weight': g.input('ln_f.weight', [D]), 'ln_f.bias': g.input('ln_f.bias', [D]) };
  const projection = g.input('projection', [V, D]);
  return {
    g,
    tensor: (name) => norm[name],
    project: (rows) => g.node('Gemm', [rows, projection], { transB: 1 }),
    normWeight: norm['ln_f.weight'],
    projection,
  };
}

interface HeadLoss extends Pick<HeadInputs, 'normWeight' | 'projection'> {
  readonly x: Value;
  readonly target: Value;
  readonly normalized: Value;
  /** The softmax of the logits (N, V). */
  readonly probabilities: Value;
  /** The cross-entropy of each row (N, 1). */
  readonly loss: Value;
}

/**
 * The loss is (max logit - target's logit) - log(max probability), because the largest probability is
 * 1 / sum(exp(logit - max logit)). This stays exact where the target's own probability is too small for a float32.
 */
function headLoss(g: GraphBuilder, config: GptConfig, rowCount: number): HeadLoss {
  const x = g.input('x', [rowCount, config.emb_dim]);
  const target = g.input('target', [rowCount, 1], 'int64');
  const inputs = headInputs(g, config);
  const { normWeight, projection } = inputs;
  const { normalized, logits } = headForward(inputs, x);
  const probabilities = g.node('Softmax', [logits], { axis: -1 });
  const largest = (rows: Value): Value => g.node('ReduceMax', [rows, g.integers([-1])], { keepdims: 1 });
  const behind = g.node('Sub', [largest(logits), g.node('GatherElements', [logits, target], { axis: 1 })]);
  const loss = g.node('Sub', [behind, g.node('Log', [largest(probabilities)])]);
  return { x, target, normWeight, projection, normalized, probabilities, loss };
}

/**
 * Makes logits (N, V) an output, together with two numbers that sampling needs of each whole row and that the engine computes
 * fastest: `max` (N, 1), which is NaN where a logit is not a finite number, and `logSum` (N, 1), log(sum(exp(logit - max))).
 */
export function logitOutputs(g: GraphBuilder, logits: Value): void {
  const axes = g.integers([-1]);
  const largest = (rows: Value): Value => g.node('ReduceMax', [rows, axes], { keepdims: 1 });
  // Zero times a finite number is zero, and zero times anything else is NaN.
  const zero = g.node('ReduceSum', [g.node('Mul', [logits, g.scalar(0)]), axes], { keepdims: 1 });
  g.output('logits', logits);
  g.output('max', g.node('Add', [largest(logits), zero]));
  // The log-softmax of the largest logit is 0 - logSum.
  g.output('logSum', g.node('Neg', [largest(g.node('LogSoftmax', [logits], { axis: -1 }))]));
}

/** x (N, D), tensors -> logitOutputs. */
export function headLogitsProgram(config: GptConfig, rowCount: number): Graph {
  const g = new GraphBuilder('head logits');
  const x = g.input('x', [rowCount, config.emb_dim]);
  logitOutputs(g, headForward(headInputs(g, config), x).logits);
  return g.build();
}

/** x (N, D), target (N, 1), tensors -> loss (N, 1), the cross-entropy of each row. */
export function headLossProgram(config: GptConfig, rowCount: number): Graph {
  const g = new GraphBuilder('head loss');
  g.output('loss', headLoss(g, config, rowCount).loss);
  return g.build();
}

interface HeadRows {
  /** The number of rows of one run of the program. */
  readonly rowCount: number;
  /** The number of rows over which the loss is the mean, in all runs of a step together. */
  readonly tokenCount: number;
}

/** x (N, D), target (N, 1), tensors -> loss (N, 1), dx (N, D) and HEAD_SAVED. */
export function headTrainProgram(config: GptConfig, { rowCount, tokenCount }: HeadRows): Graph {
  const g = new GraphBuilder('head loss and backward, inputs');
  const { x, target, normWeight, projection, normalized, probabilities, loss } = headLoss(g, config, rowCount);
  const targets = g.node('Gather', [projection, g.node('Reshape', [target, g.integers([rowCount])])], { axis: 0 });
  const factors = { alpha: { float: 1 / tokenCount }, beta: { float: -1 / tokenCount } };
  const dNormalized = g.node('Gemm', [probabilities, projection, targets], factors);
  g.output('loss', loss);
  g.output('dx', layerNormBackward(g, x, { dy: dNormalized, weight: normWeight }));
  // The transpose is made once here, because the weights' product would read the columns many times.
  g.output('probabilities', g.node('Transpose', [probabilities], { perm: [1, 0] }));
  g.output('normalized', normalized);
  g.output('dNormalized', dNormalized);
  return g.build();
}

/**
 * x (N, D), dNormalized (N, D), `ln_f.weight` and, with `accumulate`, the gradients so far -> the gradients of `ln_f`'s tensors.
 */
export function headNormGradientsProgram(
  config: GptConfig,
  { rowCount, accumulate }: Pick<HeadRows, 'rowCount'> & { readonly accumulate: boolean },
): Graph {
  const D = config.emb_dim;
  const g = new GraphBuilder('head backward, weights');
  const [x, weight] = [g.input('x', [rowCount, D]), g.input('ln_f.weight', [D])];
  const dy = g.input('dNormalized', [rowCount, D]);
  const soFar = (name: string): Value | null => (accumulate ? g.input(`${name}.soFar`, [D]) : null);
  const scale = layerNormScaleGradient(g, x, { dy, weight, soFar: soFar('ln_f.weight') });
  g.output('ln_f.weight.gradient', scale);
  g.output('ln_f.bias.gradient', rowSum(g, dy, soFar('ln_f.bias')));
  return g.build();
}

/** The number of vocabulary tokens per thread in one run of the projection's gradient: so many rows stay in a core's cache. */
export const PROJECTION_TOKENS = 1024;

/**
 * `probabilities` (v, N), `normalized` (N, D) and, with `accumulate`, `soFar` (v, D) -> `gradient` (v, D): the projection's
 * gradient for v tokens of the vocabulary, without the targets' term (see `subtractTargets`). `soFar` and `gradient` may share
 * their memory.
 */
export function projectionGradientProgram(
  config: GptConfig,
  { rowCount, tokenCount, accumulate }: HeadRows & { readonly accumulate: boolean },
): Graph {
  const D = config.emb_dim;
  const g = new GraphBuilder('head backward, projection');
  const factors = [g.input('probabilities', ['v', rowCount]), g.input('normalized', [rowCount, D])];
  if (accumulate) factors.push(g.input('soFar', ['v', D]));
  g.output('gradient', g.node('Gemm', factors, { alpha: { float: 1 / tokenCount } }));
  return g.build();
}

/**
 * Subtracts the targets' term from the projection's gradient (V, D): normalized (N, D) / tokenCount, from the row of each target.
 */
export function subtractTargets(
  gradient: Float32Array,
  { targets, normalized, tokenCount }: { targets: Uint32Array; normalized: Float32Array; tokenCount: number },
): void {
  const D = normalized.length / targets.length;
  const scale = Math.fround(1 / tokenCount);
  for (let row = 0; row < targets.length; row++) {
    const [to, from] = [targets[row] * D, row * D];
    for (let i = 0; i < D; i++) gradient[to + i] = gradient[to + i] - normalized[from + i] * scale;
  }
}
