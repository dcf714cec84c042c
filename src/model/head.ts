// The end of the model: final norm, output projection and the mean cross-entropy. Training runs forward and backward in one
// program, so that the logits (rows x vocabulary) never leave the engine. Letters: N rows, D width, V vocabulary.

import type { GptConfig } from './config.ts';
import { GraphBuilder, type Graph, type Value } from './graph.ts';
import { layerNorm, layerNormBackward, layerNormScaleGradient, rowSum } from './layers.ts';

/** The tensors that the head reads; the projection is `wte.weight` when tied. */
export const headTensorNames = (config: GptConfig): readonly [string, string, string] => [
  'ln_f.weight',
  'ln_f.bias',
  config.tie_weights ? 'wte.weight' : 'lm_head.weight',
];

interface Head {
  readonly x: Value;
  readonly target: Value;
  readonly norm: { weight: Value; bias: Value };
  readonly projection: Value;
  readonly normalized: Value;
  /** log softmax of the logits (N, V). */
  readonly logProbabilities: Value;
  /** Cross-entropy of each row (N, 1). */
  readonly loss: Value;
}

function headForward(g: GraphBuilder, config: GptConfig, rowCount: number): Head {
  const { emb_dim: D, vocab_size: V } = config;
  const x = g.input('x', [rowCount, D]);
  const target = g.input('target', [rowCount, 1], 'int64');
  const norm = { weight: g.input('ln_f.weight', [D]), bias: g.input('ln_f.bias', [D]) };
  const projection = g.input('projection', [V, D]);
  const normalized = layerNorm(g, x, norm);
  const logits = g.node('Gemm', [normalized, projection], { transB: 1 });
  const logProbabilities = g.node('LogSoftmax', [logits], { axis: -1 });
  const loss = g.node('Neg', [g.node('GatherElements', [logProbabilities, target], { axis: 1 })]);
  return { x, target, norm, projection, normalized, logProbabilities, loss };
}

/** x (N, D), tensors -> logits (N, V). */
export function headLogitsProgram(config: GptConfig, rowCount: number): Graph {
  const { emb_dim: D, vocab_size: V } = config;
  const g = new GraphBuilder('head logits');
  const x = g.input('x', [rowCount, D]);
  const norm = { weight: g.input('ln_f.weight', [D]), bias: g.input('ln_f.bias', [D]) };
  const projection = g.input('projection', [V, D]);
  g.output('logits', g.node('Gemm', [layerNorm(g, x, norm), projection], { transB: 1 }));
  return g.build();
}

/** x (N, D), target (N, 1), tensors -> loss (N, 1), the cross-entropy of each row. */
export function headLossProgram(config: GptConfig, rowCount: number): Graph {
  const g = new GraphBuilder('head loss');
  g.output('loss', headForward(g, config, rowCount).loss);
  return g.build();
}

/**
 * x (N, D), target (N, 1), tensors and, to `accumulate`, gradients so far -> loss (N, 1), dx (N, D), and the gradients
 * `ln_f.weight.gradient`, `ln_f.bias.gradient` and `projection.gradient`. The loss is the mean over `tokenCount` rows, of which these N are a part: the gradient of
 * the logits is (softmax - onehot(target)) / tokenCount.
 */
export function headTrainProgram(
  config: GptConfig,
  { rowCount, tokenCount, accumulate }: { rowCount: number; tokenCount: number; accumulate: boolean },
): Graph {
  const { emb_dim: D, vocab_size: V } = config;
  const g = new GraphBuilder('head loss and backward');
  const { x, target, norm, projection, normalized, logProbabilities, loss } = headForward(g, config, rowCount);
  const minusOne = g.constant(new Float32Array(rowCount).fill(-1), [rowCount, 1]);
  const probabilities = g.node('Exp', [logProbabilities]);
  const dLogits = g.node('ScatterElements', [probabilities, target, minusOne], { axis: 1, reduction: 'add' });
  const scale = { alpha: { float: 1 / tokenCount } };
  const dNormalized = g.node('Gemm', [dLogits, projection], scale);
  const soFar = (name: string, dims: readonly number[]): Value | null =>
    accumulate ? g.input(`${name}.soFar`, dims) : null;
  const projectionSoFar = soFar('projection', [V, D]);
  g.output('loss', loss);
  g.output('dx', layerNormBackward(g, x, { dy: dNormalized, weight: norm.weight }));
  g.output(
    'ln_f.weight.gradient',
    layerNormScaleGradient(g, x, { dy: dNormalized, weight: norm.weight, soFar: soFar('ln_f.weight', [D]) }),
  );
  g.output('ln_f.bias.gradient', rowSum(g, dNormalized, soFar('ln_f.bias', [D])));
  const factors = projectionSoFar === null ? [dLogits, normalized] : [dLogits, normalized, projectionSoFar];
  g.output('projection.gradient', g.node('Gemm', factors, { transA: 1, ...scale }));
  return g.build();
}
