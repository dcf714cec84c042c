// Text for people: numbers, tables, bars, and the records that belong to no kind of job. All functions are pure: data go in and
// text comes out, without a stream or a clock. What one kind of job prints is in the kind's file under kinds/.

import type { DaemonStatus } from '../../daemon/protocol/daemon.ts';
import type { JobEvent, JobRecord } from '../../daemon/protocol/jobs.ts';
import type { CheckpointRecord, ModelRecord } from '../../daemon/protocol/models.ts';

export type PhaseProgress = Extract<JobEvent, { type: 'progress' }>['data'];

const KIB = 1024;
const BAR_CELLS_MIN = 8;
const BAR_CELLS_MAX = 30;
const SECOND_MS = 1000;
const MINUTE_MS = 60 * SECOND_MS;
const HOUR_MS = 60 * MINUTE_MS;
const DAY_MS = 24 * HOUR_MS;

// ---- Numbers ---------------------------------------------------------------------------------------------------------

/** Writes 1234567 as '1,234,567'. */
export const formatCount = (value: number): string => Math.round(value).toLocaleString('en-US');

/** KB, MB and GB are powers of 1024 here. */
export function formatBytes(bytes: number): string {
  if (bytes < KIB) return `${bytes} bytes`;
  if (bytes < KIB ** 2) return `${(bytes / KIB).toFixed(1)} KB`;
  if (bytes < KIB ** 3) return `${(bytes / KIB ** 2).toFixed(1)} MB`;
  return `${(bytes / KIB ** 3).toFixed(2)} GB`;
}

/** Writes a time in at most two units: '45s', '1m 23s', '2h 05m', '3d 4h'. */
export function formatDuration(ms: number): string {
  if (!Number.isFinite(ms)) return '?';
  const two = (value: number): string => String(Math.floor(value)).padStart(2, '0');
  if (ms < MINUTE_MS) return `${Math.max(0, Math.round(ms / SECOND_MS))}s`;
  if (ms < HOUR_MS) return `${Math.floor(ms / MINUTE_MS)}m ${two((ms % MINUTE_MS) / SECOND_MS)}s`;
  if (ms < DAY_MS) return `${Math.floor(ms / HOUR_MS)}h ${two((ms % HOUR_MS) / MINUTE_MS)}m`;
  return `${Math.floor(ms / DAY_MS)}d ${Math.floor((ms % DAY_MS) / HOUR_MS)}h`;
}

/** Writes a time like '2026-08-01 12:30:05', in UTC. */
const formatTime = (ms: number): string => new Date(ms).toISOString().slice(0, 19).replace('T', ' ');

export const formatLoss = (loss: number | null | undefined): string => loss?.toFixed(4) ?? '-';
/** Shortens a digest to as many digits as tell two digests apart by eye. */
export const shortDigest = (digest: string): string => digest.replace(/^sha256:/, '').slice(0, 12);

// ---- Tables ----------------------------------------------------------------------------------------------------------

/** Sets columns two spaces apart. A column whose cells are all numbers is aligned right. */
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

/** Sets labels left and values right, in one block. */
export function formatBlock(rows: readonly (readonly [label: string, value: string])[]): string {
  const labelWidth = Math.max(...rows.map(([label]) => label.length));
  const valueWidth = Math.max(...rows.map(([, value]) => value.length));
  return rows.map(([label, value]) => `${label.padEnd(labelWidth)}  ${value.padStart(valueWidth)}`).join('\n');
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

// ---- Progress --------------------------------------------------------------------------------------------------------

/** Draws a bar of `cells` characters between brackets. */
export function formatBar(fraction: number, cells: number): string {
  const full = Math.round(Math.min(1, Math.max(0, fraction)) * cells);
  return `[${'#'.repeat(full)}${'-'.repeat(cells - full)}]`;
}

/** Puts a bar before `text` when `columns` leave room for one. */
export function withBar(text: string, options: { readonly fraction: number; readonly columns: number }): string {
  const cells = Math.min(BAR_CELLS_MAX, options.columns - text.length - '[] '.length);
  return cells < BAR_CELLS_MIN ? text : `${formatBar(options.fraction, cells)} ${text}`;
}

export function formatPhaseLine(
  progress: PhaseProgress,
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
