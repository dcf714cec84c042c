// `gptd history`: prints what was measured at every step that led to a model, as a chart, as CSV or as JSON.

import type { Command } from 'commander';
import type { HistoryPoint, HistoryResult } from '../../../daemon/protocol/history.ts';
import type { Session } from '../../client/session.ts';
import { withSession } from '../../connection.ts';
import { printJson, printText, type CliContext } from '../../context.ts';
import { EXIT } from '../../exit-codes.ts';
import { addConnectionFlags, checkParams, type ConnectionFlags } from '../../flags.ts';
import { drawLosses, type LossRun } from '../../render/loss-chart.ts';
import { formatHistory } from '../../render/history.ts';

const COLUMNS_DEFAULT = 100;
const CSV_FIELDS: readonly (keyof HistoryPoint)[] = [
  'jobId',
  'step',
  'at',
  'loss',
  'lr',
  'gradNorm',
  'tokens',
  'tokensPerSecond',
  'trainLoss',
  'valLoss',
];

type HistoryFlags = ConnectionFlags & { readonly csv?: boolean };

export function addHistoryCommand(program: Command, context: CliContext): void {
  const history = program
    .command('history')
    .argument('<name>', 'model')
    .argument('[other]', 'another model, drawn beside the first')
    .description("draw a model's losses, or print what was measured at every step")
    .option('--csv', 'print one line for each step');
  addConnectionFlags(history).action(async (name: string, other: string | undefined, flags: HistoryFlags) => {
    const names = other === undefined ? [name] : [name, other];
    context.exitCode = await showHistory(names, { flags, context });
  });
}

async function showHistory(
  names: readonly string[],
  { flags, context }: { readonly flags: HistoryFlags; readonly context: CliContext },
): Promise<number> {
  for (const model of names) checkParams('model.history', { model });
  return withSession({ flags, context }, async ({ session }) => {
    const runs: LossRun[] = [];
    for (const name of names) runs.push({ name, points: await readHistory(session, name) });
    if (flags.json === true) {
      const documents = runs.map(({ name, points }) => ({ model: name, points }));
      printJson(context, names.length === 1 ? documents[0] : { runs: documents });
    } else if (flags.csv === true) {
      printText(context, csvOf(runs));
    } else {
      const columns = Math.max(0, context.stdout.columns ?? 0) || COLUMNS_DEFAULT;
      printText(context, `${drawLosses(runs, columns)}\n\n${formatHistory(runs)}`);
    }
    return EXIT.ok;
  });
}

async function readHistory(session: Session, model: string): Promise<HistoryPoint[]> {
  const points: HistoryPoint[] = [];
  let after: HistoryResult['next'] = null;
  do {
    const page: HistoryResult = await session.request('model.history', { model, after });
    points.push(...page.points);
    after = page.next;
  } while (after !== null);
  return points;
}

function csvOf(runs: readonly LossRun[]): string {
  const rows = runs.flatMap(({ name, points }) =>
    points.map((point) => [name, ...CSV_FIELDS.map((field) => point[field] ?? '')].join(',')),
  );
  return [['model', ...CSV_FIELDS].join(','), ...rows].join('\n');
}
