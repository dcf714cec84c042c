// Text for people about what is stored of a model's past: its losses, and whether a checkpoint is unchanged. All functions are
// pure, as in records.ts.

import type { HistoryPoint, VerifyResult } from '../../daemon/protocol/history.ts';
import { formatCount, formatLoss, formatTable } from './records.ts';

interface NamedHistory {
  readonly name: string;
  readonly points: readonly HistoryPoint[];
}

/** Returns a table of what a chart cannot say exactly: the last and the best losses. */
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
