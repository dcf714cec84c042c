// `gptd history`: what was measured at every step that led to a model, as a chart, a table for other programs, or JSON; and
// `gptd verify`, which compares what is stored with what was told.

import type { Command } from 'commander';
import { EXIT } from '../exit-codes.ts';
import type { HistoryPoint, HistoryResult } from '../../daemon/protocol/history.ts';
import { printJson, printText, type CliContext } from '../context.ts';
import { addConnectionFlags, checkParams, type ConnectionFlags } from '../flags.ts';
import { drawLosses, type LossRun } from '../render/loss-chart.ts';
import { formatHistory, formatVerified } from '../render/history.ts';
import type { Session } from '../client/session.ts';
import { withSession } from '../submit.ts';

const COLUMNS_DEFAULT = 100;
const CSV_FIELDS = [
  ...['jobId', 'step', 'at', 'loss', 'lr', 'gradNorm', 'tokens', 'tokensPerSecond', 'trainLoss', 'valLoss'],
] as readonly (keyof HistoryPoint)[];

type HistoryFlags = ConnectionFlags & { readonly csv?: boolean };

export function addHistoryCommands(program: Command, context: CliContext): void {
  const history = program
    .command('history')
    .argument('<name>', 'model')
    .argument('[other]', 'another model, drawn beside the first')
    .description("draw a model's losses, or print what was measured at every step")
    .option('--csv', 'a line a step');
  addConnectionFlags(history).action(async (name: string, other: string | undefined, flags: HistoryFlags) => {
    const names = other === undefined ? [name] : [name, other];
    context.exitCode = await showHistory(names, { flags, context });
  });
  const verify = program
    .command('verify')
    .argument('<name>', 'model, or model@step, or model@best')
    .description("compute a checkpoint's digest and hash chain again from what is stored");
  addConnectionFlags(verify).action(async (model: string, flags: ConnectionFlags) => {
    context.exitCode = await verifyModel(model, { flags, context });
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

async function verifyModel(
  model: string,
  { flags, context }: { readonly flags: ConnectionFlags; readonly context: CliContext },
): Promise<number> {
  checkParams('model.verify', { model });
  return withSession({ flags, context }, async ({ session }) => {
    const result = await session.request('model.verify', { model });
    if (flags.json === true) printJson(context, result);
    else printText(context, formatVerified(result));
    return result.ok ? EXIT.ok : EXIT.jobFailed;
  });
}
