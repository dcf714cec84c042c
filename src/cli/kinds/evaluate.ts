// How an `evaluate` job is printed: one line, and a second line when the quantized model was evaluated, too.

import type { EvaluateResult, Evaluation } from '../../daemon/protocol/evaluation.ts';
import { formatCount } from '../render/records.ts';
import { documentKind } from './kind.ts';

export const evaluateKind = documentKind(formatEvaluated);

function formatEvaluated(result: EvaluateResult): string {
  const { model, step, tokens, windows, contextLength, stride, quantized } = result;
  const line =
    `${model}@${step}: ${formatEvaluation(result)} over ${formatCount(tokens)} tokens ` +
    `(${formatCount(windows)} windows of ${contextLength}, stride ${stride})`;
  if (quantized === undefined) return line;
  return `${line}\n${quantized.quantize}: ${formatEvaluation(quantized)}, ${quantized.ratio.toFixed(5)} times the perplexity of float32`;
}

const formatEvaluation = ({ loss, perplexity, bitsPerByte }: Evaluation): string =>
  `loss ${loss.toFixed(4)}, perplexity ${perplexity.toFixed(2)}${bitsPerByte === null ? '' : `, ${bitsPerByte.toFixed(4)} bits per byte`}`;
