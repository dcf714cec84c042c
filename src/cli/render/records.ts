// Text for people: numbers, tables, and one function per kind of record. Pure: data in, text out, no stream and no clock.
// What a job prints while it runs is in follow.ts.

import type {
  CheckpointRecord,
  CreateResult,
  ModelRecord,
  ParamsResult,
  PlanStage,
} from '../../daemon/protocol/models.ts';
import type { DaemonStatus } from '../../daemon/protocol/daemon.ts';
import type { ExportResult } from '../../daemon/protocol/interchange.ts';
import type { GenerateResult, TokenData } from '../../daemon/protocol/generation.ts';
import type { JobEvent, JobRecord } from '../../daemon/protocol/jobs.ts';
import type { TrainResult } from '../../daemon/protocol/training.ts';

type EventData<T extends JobEvent['type']> = Extract<JobEvent, { type: T }>['data'];

const KIB = 1024;
const BAR_CELLS_MIN = 8;
const BAR_CELLS_MAX = 30;
const SECOND_MS = 1000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;

// ---- Numbers ---------------------------------------------------------------------------------------------------------

/** 1234567 -> '1,234,567'. */
export const formatCount = (value: number): string => Math.round(value).toLocaleString('en-US');

/** MB and GB as the book counts them, in powers of 1024. */
export function formatBytes(bytes: number): string {
  if (bytes < KIB) return `${bytes} bytes`;
  if (bytes < KIB ** 2) return `${(bytes / KIB).toFixed(1)} KB`;
  if (bytes < KIB ** 3) return `${(bytes / KIB ** 2).toFixed(1)} MB`;
  return `${(bytes / KIB ** 3).toFixed(2)} GB`;
}

/** Two units at most: '45s', '1m 23s', '2h 05m', '3d 4h'. */
export function formatDuration(ms: number): string {
  if (!Number.isFinite(ms)) return '?';
  const two = (value: number): string => String(Math.floor(value)).padStart(2, '0');
  if (ms < MINUTE_MS) return `${Math.max(0, Math.round(ms / SECOND_MS))}s`;
  if (ms < HOUR_MS) return `${Math.floor(ms / MINUTE_MS)}m ${two((ms % MINUTE_MS) / SECOND_MS)}s`;
  if (ms < DAY_MS) return `${Math.floor(ms / HOUR_MS)}h ${two((ms % HOUR_MS) / MINUTE_MS)}m`;
  return `${Math.floor(ms / DAY_MS)}d ${Math.floor((ms % DAY_MS) / HOUR_MS)}h`;
}

/** '2026-08-01 12:30:05' in UTC. */
export const formatTime = (ms: number): string => new Date(ms).toISOString().slice(0, 19).replace('T', ' ');

const formatLoss = (loss: number | null): string => (loss === null ? '-' : loss.toFixed(4));
const formatRate = (lr: number): string => (lr === 0 ? '0' : lr.toExponential(2));
/** Enough of a digest to tell two apart by eye. */
const shortDigest = (digest: string): string => digest.replace(/^sha256:/, '').slice(0, 12);

// ---- Tables ----------------------------------------------------------------------------------------------------------

/** Columns two spaces apart; those whose every cell is a number are aligned right. */
export function formatTable(header: readonly string[], rows: readonly (readonly string[])[]): string {
  const widths = header.map((title, column) => Math.max(title.length, ...rows.map((row) => row[column].length)));
  const isNumeric = header.map(
    (_, column) => rows.length > 0 && rows.every((row) => /^(-|-?[\d.,]+( [KMG]B)?)$/.test(row[column])),
  );
  const line = (cells: readonly string[]): string =>
    cells
      .map((cell, column) => (isNumeric[column] ? cell.padStart(widths[column]) : cell.padEnd(widths[column])))
      .join('  ')
      .trimEnd();
  return [header, ...rows].map(line).join('\n');
}

/** Labels left, values right, in one block. */
function formatBlock(rows: readonly (readonly [label: string, value: string])[]): string {
  const labelWidth = Math.max(...rows.map(([label]) => label.length));
  const valueWidth = Math.max(...rows.map(([, value]) => value.length));
  return rows.map(([label, value]) => `${label.padEnd(labelWidth)}  ${value.padStart(valueWidth)}`).join('\n');
}

const PARAMS_ROWS = [
  'token_embeddings',
  'position_embeddings',
  'embedding_total',
  'mha_per_block',
  'ff_per_block',
  'layernorm_per_block',
  'params_per_block',
  'transformer_blocks_total',
  'final_layernorm',
  'output_projection',
  'total_params',
] as const satisfies readonly (keyof ParamsResult)[];

export function formatParams(result: ParamsResult): string {
  const { config, memory } = result;
  const shape =
    `vocab ${formatCount(config.vocab_size)}, context ${formatCount(config.context_length)}, width ${formatCount(config.emb_dim)}, ` +
    `${config.n_heads} heads, ${config.n_layers} blocks, dropout ${config.drop_rate}` +
    `${config.qkv_bias ? ', qkv bias' : ''}${config.tie_weights ? ', tied weights' : ''}`;
  const counts = PARAMS_ROWS.map((row) => [row.replaceAll('_', ' '), formatCount(result[row])] as const);
  const bytes = [
    ['weights', formatBytes(memory.weightsBytes)],
    ['optimizer state', formatBytes(memory.optimizerBytes)],
    ['serving', formatBytes(memory.servingBytes)],
    ['training', formatBytes(memory.trainingBytes)],
  ] as const;
  return [
    `GPT: ${shape}`,
    `\nparameters\n${formatBlock(counts)}`,
    `\nmemory\n${formatBlock(bytes)}`,
    `\nplan\n${result.plan.map(formatStage).join('\n')}`,
  ].join('\n');
}

function formatStage(stage: PlanStage): string {
  const lastBlock = stage.endBlock - 1;
  const blocks =
    stage.endBlock <= stage.firstBlock
      ? []
      : [lastBlock === stage.firstBlock ? `block ${lastBlock}` : `blocks ${stage.firstBlock} to ${lastBlock}`];
  const parts = [...(stage.embeds ? ['embedding'] : []), ...blocks, ...(stage.head ? ['head'] : [])];
  return `worker ${stage.worker}: ${parts.join(', ')} (${formatCount(stage.params)} parameters)`;
}

// ---- Records ---------------------------------------------------------------------------------------------------------

export function formatStatus(status: DaemonStatus, url: string): string {
  const { engine, queue, memory } = status;
  const rows = [
    ['daemon', `gptd ${status.version}, pid ${status.pid}`],
    ['url', url],
    ['up', formatDuration(status.uptimeMs)],
    ['engine', `${engine.name} ${engine.version}`],
    ['fingerprint', engine.fingerprint],
    ['workers', String(status.workers)],
    ['jobs', `${queue.running} running, ${queue.queued} queued of at most ${queue.limit}, ${queue.paused} paused`],
    ['memory', `${formatBytes(memory.rssBytes)} used, models may take ${formatBytes(memory.budgetBytes)}`],
  ] as const;
  const width = Math.max(...rows.map(([label]) => label.length));
  return rows.map(([label, value]) => `${label.padEnd(width)}  ${value}`).join('\n');
}

export function formatModels(models: readonly ModelRecord[]): string {
  if (models.length === 0) return 'There are no models yet: make one with "gptd create NAME".';
  return formatTable(
    ['NAME', 'PARAMETERS', 'STEP', 'TOKENIZER', 'DIGEST', 'CREATED'],
    models.map((model) => [
      model.name,
      formatCount(model.parameters),
      formatCount(model.step),
      model.tokenizer ?? 'none',
      shortDigest(model.digest),
      formatTime(model.createdAt),
    ]),
  );
}

export function formatModel(model: ModelRecord): string {
  const rows: (readonly [string, string])[] = [
    ['name', model.name],
    ['parameters', formatCount(model.parameters)],
    ['step', formatCount(model.step)],
    ['digest', model.digest],
    ['tokenizer', model.tokenizer ?? 'none'],
    ['created', formatTime(model.createdAt)],
    ...Object.entries(model.config).map(([field, value]) => [field, String(value)] as const),
  ];
  const width = Math.max(...rows.map(([label]) => label.length));
  return rows.map(([label, value]) => `${label.padEnd(width)}  ${value}`).join('\n');
}

export function formatCheckpoints(checkpoints: readonly CheckpointRecord[]): string {
  if (checkpoints.length === 0) return 'There are no checkpoints.';
  return formatTable(
    ['STEP', 'LOSS', 'VAL LOSS', 'SIZE', 'OPTIMIZER', 'DIGEST', 'CREATED'],
    checkpoints.map((checkpoint) => [
      formatCount(checkpoint.step),
      formatLoss(checkpoint.loss),
      formatLoss(checkpoint.valLoss),
      formatBytes(checkpoint.bytes),
      checkpoint.optimizer ? 'yes' : 'no',
      shortDigest(checkpoint.digest),
      formatTime(checkpoint.createdAt),
    ]),
  );
}

export function formatJobs(jobs: readonly JobRecord[]): string {
  if (jobs.length === 0) return 'There are no such jobs.';
  return formatTable(
    ['JOB', 'KIND', 'MODEL', 'STATE', 'PRIORITY', 'CREATED', 'TOOK'],
    jobs.map((job) => [
      job.jobId,
      job.kind,
      (job.spec as { model?: string } | null)?.model ?? '-',
      job.state,
      String(job.priority),
      formatTime(job.createdAt),
      job.startedAt === null || job.endedAt === null ? '-' : formatDuration(job.endedAt - job.startedAt),
    ]),
  );
}

export const formatCreated = (result: CreateResult): string =>
  `${result.model}: ${formatCount(result.parameters)} parameters, step ${result.step}, digest ${result.digest}`;

export const formatExported = ({ model, step, format, type, files }: ExportResult): string =>
  [
    `${model}: step ${formatCount(step)} as ${format} (${type})`,
    ...files.map(({ name, bytes, digest }) => `${name}  ${formatBytes(bytes)}  ${digest}`),
  ].join('\n');

export function formatTrained(result: TrainResult): string {
  const valLoss = result.valLoss === null ? '' : `, validation loss ${formatLoss(result.valLoss)}`;
  const line =
    `${result.model}: step ${formatCount(result.step)}, loss ${formatLoss(result.loss)}${valLoss}, ` +
    `${formatCount(result.tokens)} tokens, digest ${result.digest}`;
  if (result.reason !== 'patience' || result.best === null) return line;
  return `${line}\nstopped early: the validation loss was lowest at step ${formatCount(result.best.step)} (${formatLoss(result.best.valLoss)}), which is ${result.model}@best`;
}

const STOP_REASONS: Readonly<Record<GenerateResult['reason'], string>> = {
  stop: 'stopped at a stop text',
  length: 'stopped at the most tokens asked for',
  context: 'stopped at the end of the context',
};

export function formatGenerated({ usage, timings, reason }: GenerateResult): string {
  return (
    `${formatCount(usage.completionTokens)} tokens after ${formatCount(usage.promptTokens)} of prompt, ` +
    `${timings.tokensPerSecond.toFixed(1)} tokens/s, first token after ${formatCount(timings.firstTokenMs)} ms; ${STOP_REASONS[reason]}`
  );
}

/** Each sample but the first, under a heading. */
export const formatOtherSamples = ({ samples = [] }: GenerateResult): string[] =>
  samples.slice(1).map(({ text }, i) => `\n--- sample ${i + 2} of ${samples.length} ---\n${text}`);

/** A row for every token: itself, how likely the model found it, and what it found likelier. */
export function formatLogprobs(tokens: readonly TokenData[]): string {
  const rows = [...tokens]
    .sort((a, b) => (a.sample ?? 0) - (b.sample ?? 0) || a.index - b.index)
    .map(({ sample, index, piece = '', logprob, top = [] }) => [
      ...(sample === undefined ? [] : [String(sample + 1)]),
      String(index),
      JSON.stringify(piece),
      logprob.toFixed(4),
      top.map((other) => `${JSON.stringify(other.text)} ${other.logprob.toFixed(4)}`).join('  '),
    ]);
  const header = ['INDEX', 'TOKEN', 'LOGPROB', 'LIKELIEST'];
  return formatTable(tokens.some(({ sample }) => sample !== undefined) ? ['SAMPLE', ...header] : header, rows);
}

// ---- Progress --------------------------------------------------------------------------------------------------------

/** A bar of `cells` characters between brackets. */
export function formatBar(fraction: number, cells: number): string {
  const full = Math.round(Math.min(1, Math.max(0, fraction)) * cells);
  return `[${'#'.repeat(full)}${'-'.repeat(cells - full)}]`;
}

/** Puts a bar before `text` when `columns` leave room for one. */
export function withBar(text: string, options: { readonly fraction: number; readonly columns: number }): string {
  const cells = Math.min(BAR_CELLS_MAX, options.columns - text.length - '[] '.length);
  return cells < BAR_CELLS_MIN ? text : `${formatBar(options.fraction, cells)} ${text}`;
}

export interface TrainLineOptions {
  readonly valLoss: number | null;
  readonly columns: number;
  readonly live: boolean;
}

export function formatTrainLine(step: EventData<'step'>, options: TrainLineOptions): string {
  const text = [
    `step ${formatCount(step.step)}/${formatCount(step.steps)}`,
    `loss ${formatLoss(step.loss)}`,
    ...(options.valLoss === null ? [] : [`val ${formatLoss(options.valLoss)}`]),
    `norm ${step.gradNorm.toPrecision(3)}`,
    `lr ${formatRate(step.lr)}`,
    `${formatCount(step.tokensPerSecond)} tokens/s`,
    `${formatDuration(step.etaMs)} left`,
  ].join('  ');
  return options.live ? withBar(text, { fraction: step.step / step.steps, columns: options.columns }) : text;
}

export function formatPhaseLine(
  progress: EventData<'progress'>,
  options: { readonly columns: number; readonly live: boolean },
): string {
  const fraction = progress.total > 0 ? progress.done / progress.total : 0;
  const amount =
    progress.unit === 'bytes'
      ? `${formatBytes(progress.done)} of ${formatBytes(progress.total)}`
      : `${formatCount(progress.done)} of ${formatCount(progress.total)} ${progress.unit}`;
  const text = `${progress.phase}: ${Math.floor(fraction * 100)}% (${amount})`;
  return options.live ? withBar(text, { fraction, columns: options.columns }) : text;
}

export function formatEval(data: EventData<'eval'>): string {
  const validation =
    data.valLoss === null
      ? ''
      : `, validation loss ${formatLoss(data.valLoss)}${data.perplexity === null ? '' : ` (perplexity ${data.perplexity.toFixed(2)})`}`;
  return `eval at step ${formatCount(data.step)}: training loss ${formatLoss(data.trainLoss)}${validation}`;
}

export const formatCheckpoint = (data: EventData<'checkpoint'>): string =>
  `checkpoint at step ${formatCount(data.step)}: digest ${shortDigest(data.digest)}`;
