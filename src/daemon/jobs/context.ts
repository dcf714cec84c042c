// A job context holds what a running job may use: the daemon's parts, its own event log, and the two signals that tell it to
// stop. A cancel takes effect between micro-batches or tokens; a halt (pause or shutdown) lets the job save its work first.

import type { EngineInfo } from '../../workers/settings.ts';
import type { PreparerCalls } from '../../workers/data/messages.ts';
import type { EmitOptions, EventLog } from './event-log.ts';
import type { Metrics } from '../operations/metrics.ts';
import type { StageThread } from '../threads/stages.ts';
import type { JobEventBody } from '../protocol/jobs.ts';
import type { JobKind, JobSpecs } from '../protocol/kinds.ts';
import type { StoreClient } from '../threads/store-client.ts';
import type { Tidying } from './tidying.ts';
import type { Texts } from '../threads/texts.ts';
import type { WorkerThread } from '../threads/worker-thread.ts';
import type { StoredEvent } from '../../workers/store/messages.ts';

/** The long-lived parts of the daemon, made and closed by composition.ts. */
export interface Services {
  readonly store: StoreClient;
  readonly events: EventLog;
  readonly metrics: Metrics;
  readonly stages: readonly StageThread[];
  readonly preparer: WorkerThread<PreparerCalls>;
  readonly texts: Texts;
  readonly tidying: Tidying;
  readonly engine: EngineInfo;
  readonly memoryBudgetBytes: number;
}

export interface JobContext<K extends JobKind = JobKind> {
  readonly jobId: string;
  readonly spec: JobSpecs[K];
  readonly services: Services;
  /**
   * Whether the job ran before, in this daemon or an earlier one. Its log may then hold events that it is about to emit again.
   */
  readonly isRepeated: boolean;
  /** Aborts when the job is cancelled, and when a shutdown has waited long enough for it to save its work. */
  readonly cancelled: AbortSignal;
  /** Aborts when the job is to save its work and stop. */
  readonly halted: AbortSignal;
  readonly emit: (body: JobEventBody, options?: EmitOptions) => Promise<StoredEvent | null>;
}

/** A job throws this when it stops because it was halted. It goes on later from what it has saved. */
export class JobHalted extends Error {
  constructor() {
    super('the job was halted');
    this.name = 'JobHalted';
  }
}
