// Text for people about trainings that are over: evaluations, histories, verifications. Pure, like render/records.ts.

import type { EvaluateResult, Evaluation } from '../../daemon/protocol/evaluation.ts';
import type { HistoryPoint, VerifyResult } from '../../daemon/protocol/history.ts';
import type { JobEvent } from '../../daemon/protocol/jobs.ts';
import { formatCount, formatTable } from './records.ts';

/** One line, whatever the text holds. */
export const formatSample = ({ step, prompt, text }: Extract<JobEvent, { type: 'sample' }>['data']): string =>
  `sample at step ${formatCount(step)}: ${JSON.stringify(prompt + text)}`;

export function formatEvaluated(result: EvaluateResult): string {
  const { model, step, tokens, windows, contextLength, stride, quantized } = result;
  const line =
    `${model}@${step}: ${formatEvaluation(result)} over ${formatCount(tokens)} tokens ` +
    `(${formatCount(windows)} windows of ${contextLength}, stride ${stride})`;
  if (quantized === undefined) return line;
  return `${line}\n${quantized.quantize}: ${formatEvaluation(quantized)}, ${quantized.ratio.toFixed(5)} times the perplexity of float32`;
}

const formatEvaluation = ({ loss, perplexity, bitsPerByte }: Evaluation): string =>
  `loss ${loss.toFixed(4)}, perplexity ${perplexity.toFixed(2)}${bitsPerByte === null ? '' : `, ${bitsPerByte.toFixed(4)} bits per byte`}`;

interface NamedHistory {
  readonly name: string;
  readonly points: readonly HistoryPoint[];
}

/** What a chart cannot say exactly: the last and the best losses. */
export function formatHistory(runs: readonly NamedHistory[]): string {
  return formatTable(
    ['MODEL', 'STEPS', 'LAST LOSS', 'LAST VAL', 'BEST VAL', 'AT STEP'],
    runs.map(({ name, points }) => {
      const losses = points.filter(({ loss }) => loss !== null);
      const evaluated = points.filter(({ valLoss }) => valLoss !== null);
      const best = evaluated.reduce<HistoryPoint | undefined>(
        (lowest, point) => (lowest === undefined || point.valLoss! < lowest.valLoss! ? point : lowest),
        undefined,
      );
      return [
        name,
        formatCount(losses.length),
        formatLoss(losses.at(-1)?.loss),
        formatLoss(evaluated.at(-1)?.valLoss),
        formatLoss(best?.valLoss),
        best === undefined ? '-' : formatCount(best.step),
      ];
    }),
  );
}

const formatLoss = (loss: number | null | undefined): string => loss?.toFixed(4) ?? '-';

export function formatVerified(result: VerifyResult): string {
  const { model, step, digest, chain, recomputedChain, problem } = result;
  if (problem !== null) return `${model}@${step}: ${problem}`;
  const source = recomputedChain === null ? 'its steps are not stored' : 'the stored steps give the same';
  return [
    `${model}@${step}: verified`,
    `digest  ${digest}  (the stored weights give the same)`,
    ...(chain === null ? [] : [`chain   ${chain}  (${source})`]),
  ].join('\n');
}
