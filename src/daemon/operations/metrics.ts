// What a monitor may ask for: counters, gauges and histograms in Prometheus' format, under GET /metrics. Labels come from closed
// sets, never from a model's or a job's name, so that the number of series is bounded. Durations come from the monotonic clock.

import { stat } from 'node:fs/promises';
import path from 'node:path';
import process from 'node:process';
import { collectDefaultMetrics, Counter, Gauge, Histogram, Registry } from 'prom-client';
import type { StoredEvent } from '../../workers/store/messages.ts';
import { isTerminal, type JobState } from '../protocol/jobs.ts';
import { JOB_KINDS, type JobKind } from '../protocol/kinds.ts';
import type { ErrorData } from '../protocol/errors.ts';
import type { GenerateResult } from '../protocol/generation.ts';

/** A job's change of state. */
export interface JobTransition {
  readonly jobId: string;
  /** `unknown` stands for every kind that this version does not know. */
  readonly kind: JobKind | 'unknown';
  readonly model: string | undefined;
  /** null for a job that this daemon has just taken up. */
  readonly from: JobState | null;
  readonly to: JobState;
  /** The time that the job has spent in `from`. */
  readonly elapsedMs: number;
  /** Why the job failed; only set when it did. */
  readonly error?: ErrorData | undefined;
}

/** What the parts of the daemon hold. They are asked when a monitor asks. */
interface Gauges {
  readonly servedBytes: () => number;
  readonly eventBacklog: () => number;
  readonly socketCount: () => number;
}

interface MetricsSettings {
  readonly dataDir: string;
  readonly version: string;
  readonly engine: { readonly name: string; readonly version: string };
  readonly workers: number;
  readonly memoryBudgetBytes: number;
}

const LIVE_STATES = ['queued', 'running', 'paused'] as const;
const SECONDS = [0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800];

export class Metrics {
  readonly #registry = new Registry();
  readonly #registers = [this.#registry];
  readonly #jobs = this.#gauge('gptd_jobs', 'Jobs that have not ended.', ['kind', 'state']);
  readonly #queue = this.#gauge('gptd_queue_length', 'Jobs that wait for their turn.');
  readonly #ended = this.#counter('gptd_jobs_ended_total', 'Jobs that ended.', ['kind', 'state']);
  readonly #wait = this.#histogram('gptd_queue_wait_seconds', 'Time from queued to running.', ['kind']);
  readonly #firstToken = this.#histogram(
    'gptd_time_to_first_token_seconds',
    'Time from the submission of a generation to its first token.',
  );
  readonly #promptTokens = this.#counter('gptd_prompt_tokens_total', 'Tokens of prompts that were answered.');
  readonly #generatedTokens = this.#counter('gptd_generated_tokens_total', 'Tokens that were generated.');
  readonly #trainedTokens = this.#counter('gptd_trained_tokens_total', 'Tokens that were trained on.');
  readonly #step = this.#histogram('gptd_train_step_seconds', 'Time of one optimizer step.');
  readonly #loss = this.#gauge('gptd_train_loss', 'Loss of the newest training step.');
  readonly #checkpoint = this.#histogram('gptd_checkpoint_seconds', 'Time to store one checkpoint.');
  readonly #checkpointBytes = this.#counter('gptd_checkpoint_bytes_total', 'Bytes of checkpoints that were stored.');
  readonly #restarts = this.#counter('gptd_worker_restarts_total', 'Worker threads that died and were replaced.', [
    'worker',
  ]);
  /** When the generations that have no token yet were submitted, by job. */
  readonly #awaitingToken = new Map<string, number>();
  #trainingBytes = 0;

  constructor(settings: MetricsSettings) {
    collectDefaultMetrics({ register: this.#registry });
    for (const kind of JOB_KINDS) {
      for (const state of LIVE_STATES) this.#jobs.set({ kind, state }, 0);
    }
    for (const worker of ['stage', 'preparer', 'text']) this.#restarts.inc({ worker }, 0);
    const { version, engine } = settings;
    this.#gauge('gptd_info', 'The running version and its engine.', ['version', 'engine', 'engine_version']).set(
      { version, engine: engine.name, engine_version: engine.version },
      1,
    );
    this.#gauge('gptd_workers', 'Worker threads that compute.').set(settings.workers);
    this.#gauge('gptd_memory_budget_bytes', 'What models may take together.').set(settings.memoryBudgetBytes);
    this.#watchDatabase(settings.dataDir);
  }

  get contentType(): string {
    return this.#registry.contentType;
  }

  render(): Promise<string> {
    return this.#registry.metrics();
  }

  /** Adds the gauges of what only the daemon's other parts know. */
  watch({ servedBytes, eventBacklog, socketCount }: Gauges): void {
    const trainingBytes = (): number => this.#trainingBytes;
    new Gauge({
      name: 'gptd_memory_bytes',
      help: 'Memory by part; models and training are estimates and part of array_buffers or native memory.',
      labelNames: ['part'],
      registers: this.#registers,
      collect() {
        const { rss, heapUsed, external, arrayBuffers } = process.memoryUsage();
        this.set({ part: 'resident' }, rss);
        this.set({ part: 'heap' }, heapUsed);
        this.set({ part: 'external' }, external);
        this.set({ part: 'array_buffers' }, arrayBuffers);
        this.set({ part: 'served_models' }, servedBytes());
        this.set({ part: 'training' }, trainingBytes());
      },
    });
    const sampled = (name: string, help: string, value: () => number): void => {
      new Gauge({
        name,
        help,
        registers: this.#registers,
        collect() {
          this.set(value());
        },
      });
    };
    sampled('gptd_event_backlog', 'Events that wait for their transaction.', eventBacklog);
    sampled('gptd_websockets', 'Open WebSockets.', socketCount);
  }

  jobMoved({ jobId, kind, from, to, elapsedMs }: JobTransition): void {
    if (from !== null) this.#jobs.dec({ kind, state: from });
    if (from === 'queued') this.#queue.dec();
    if (isTerminal(to)) {
      this.#ended.inc({ kind, state: to });
      this.#awaitingToken.delete(jobId);
      return;
    }
    this.#jobs.inc({ kind, state: to });
    if (to === 'queued') this.#queue.inc();
    if (from === 'queued' && to === 'running') this.#wait.observe({ kind }, elapsedMs / 1000);
    if (from === null && kind === 'generate') this.#awaitingToken.set(jobId, performance.now());
  }

  /** Is told every stored event once: what a job says again after an interruption is not stored, and so not counted, again. */
  eventStored({ jobId, type, data }: StoredEvent): void {
    if (type === 'token') {
      this.#generatedTokens.inc();
      const submittedMs = this.#awaitingToken.get(jobId);
      if (submittedMs === undefined) return;
      this.#awaitingToken.delete(jobId);
      this.#firstToken.observe((performance.now() - submittedMs) / 1000);
    } else if (type === 'succeeded') {
      const { usage } = ((data as { result?: unknown }).result ?? {}) as Partial<GenerateResult>;
      if (usage !== undefined) this.#promptTokens.inc(usage.promptTokens);
    }
  }

  trainStep({ ms, tokens, loss }: { readonly ms: number; readonly tokens: number; readonly loss: number }): void {
    this.#step.observe(ms / 1000);
    this.#trainedTokens.inc(tokens);
    this.#loss.set(loss);
  }

  /** Notes what the running training holds: 0 when none runs. */
  trainingHolds(bytes: number): void {
    this.#trainingBytes = bytes;
  }

  checkpointStored({ ms, bytes }: { readonly ms: number; readonly bytes: number }): void {
    this.#checkpoint.observe(ms / 1000);
    this.#checkpointBytes.inc(bytes);
  }

  workerDied(worker: 'stage' | 'preparer' | 'text'): void {
    this.#restarts.inc({ worker });
  }

  #watchDatabase(dataDir: string): void {
    new Gauge({
      name: 'gptd_database_bytes',
      help: 'Size of the database and of its write-ahead log.',
      labelNames: ['file'],
      registers: this.#registers,
      async collect() {
        for (const file of ['gptd.db', 'gptd.db-wal']) {
          const size = await stat(path.join(dataDir, file))
            .then((found) => found.size)
            .catch(() => 0);
          this.set({ file }, size);
        }
      },
    });
  }

  #gauge<L extends string = never>(name: string, help: string, labelNames: readonly L[] = []): Gauge<L> {
    return new Gauge({ name, help, labelNames, registers: this.#registers });
  }

  #counter<L extends string = never>(name: string, help: string, labelNames: readonly L[] = []): Counter<L> {
    return new Counter({ name, help, labelNames, registers: this.#registers });
  }

  #histogram<L extends string = never>(name: string, help: string, labelNames: readonly L[] = []): Histogram<L> {
    return new Histogram({ name, help, labelNames, buckets: SECONDS, registers: this.#registers });
  }
}
