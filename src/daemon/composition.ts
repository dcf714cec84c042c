// This is the composition root. It makes the daemon's parts in order, runs until it is told to stop, and closes them in reverse.

import { renameSync, rmSync, writeFileSync } from 'node:fs';
import { isIPv6 } from 'node:net';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { GptdError } from '../model/errors.ts';
import { PREPARER_THREAD } from '../workers/data/messages.ts';
import { loadToken } from './edge/access.ts';
import { EventLog } from './jobs/event-log.ts';
import type { Services } from './jobs/context.ts';
import { Jobs } from './jobs/queue.ts';
import { logError, openLog, type Logger } from './operations/log.ts';
import { jobHandlers } from './edge/methods.ts';
import { Metrics, type JobTransition } from './operations/metrics.ts';
import type { DaemonEnd, DaemonOptions } from './options.ts';
import { openaiRoutes } from './edge/openai/routes.ts';
import { evaluateKind } from './evaluation/kind.ts';
import type { Kinds } from './jobs/kind.ts';
import { createKind } from './models/create.ts';
import { withOffer } from './models/damage.ts';
import { exportKind } from './models/export.ts';
import { importKind } from './models/import.ts';
import { modelHandlers } from './models/methods.ts';
import { paramsKind } from './models/params.ts';
import { generateKind } from './serving/kind.ts';
import { trainKind } from './training/kind.ts';
import { VERSION, type DaemonFile } from './protocol/daemon.ts';
import { ServedModels } from './serving/served-models.ts';
import { Server } from './edge/server.ts';
import { startStages } from './threads/stages.ts';
import { StoreClient } from './threads/store-client.ts';
import { Texts } from './threads/texts.ts';
import { Tidying } from './jobs/tidying.ts';
import { WorkerThread } from './threads/worker-thread.ts';

/** The fraction of the machine's memory that models may take. */
const MEMORY_SHARE = 0.85;
/** The exit code that a shell reports for a process that SIGINT ended: 128 and the signal's number. */
const INTERRUPTED_EXIT_CODE = 130;

/** Runs a daemon over `dataDir`, which exists, until SIGINT or SIGTERM. A second signal ends it at once. */
export async function run(options: DaemonOptions): Promise<DaemonEnd> {
  const startedAt = performance.now();
  const { dataDir, host, workers } = options;
  const urlHost = isIPv6(host) ? `[${host}]` : host;
  const log = openLog({ level: options.logLevel, dataDir });
  const { logger } = log;
  const stopping = new AbortController();
  let isReady = false;
  let failure: unknown = null;
  const onFatal = (error: unknown): void => {
    failure ??= error;
    stopping.abort();
  };

  const unlisten = onStopSignal(stopping, logger);
  const opened: { close(): Promise<void> }[] = [];
  const keep = <P extends { close(): Promise<void> }>(part: P): P => {
    opened.push(part);
    return part;
  };
  try {
    const store = keep(await StoreClient.open({ dataDir }));
    store.onDeath(onFatal);
    const token = loadToken(options);
    const preparer = keep(new WorkerThread(PREPARER_THREAD, { dataDir, engine: options.engine }));
    const { stages, engine } = await startStages(workers, { dataDir, choice: options.engine, keep });
    const memoryBudgetBytes = Math.floor(memoryBytes() * MEMORY_SHARE);
    const metrics = new Metrics({ dataDir, version: VERSION, engine, workers, memoryBudgetBytes });
    const events = new EventLog(store, { onFatal, onStored: (event) => metrics.eventStored(event) });
    const report = (error: unknown): void => logError(logger, error);
    const served = new ServedModels(stages, { store, budgetBytes: memoryBudgetBytes, onError: report });
    const onDeath = (worker: 'preparer' | 'stage' | 'text', error: unknown): void => {
      logger.error({ worker, err: error }, 'worker thread died and is replaced');
      metrics.workerDied(worker);
    };
    preparer.onDeath((error) => onDeath('preparer', error));
    const texts = keep(new Texts({ onDeath: (error) => onDeath('text', error) }));
    for (const stage of stages) {
      stage.onDeath((error) => {
        onDeath('stage', error);
        served.forget(stage);
      });
    }
    const tidying = keep(new Tidying(store, { keepJobs: options.keepJobs, onError: report }));
    const services: Services = {
      store,
      events,
      metrics,
      stages,
      preparer,
      texts,
      tidying,
      engine,
      memoryBudgetBytes,
    };
    const onMoved = (transition: JobTransition): void => {
      metrics.jobMoved(transition);
      logTransition(logger, transition);
    };
    const kinds: Kinds = {
      params: paramsKind,
      create: createKind,
      train: trainKind,
      generate: generateKind(served),
      evaluate: evaluateKind(served),
      import: importKind,
      export: exportKind,
    };
    const { queueLimit } = options;
    const onDamage = (error: GptdError, reference: string): Promise<GptdError> =>
      withOffer(services, { error, reference });
    const jobs = keep(new Jobs(services, { kinds, queueLimit, onFatal, onMoved, onDamage }));
    const handlers = {
      ...jobHandlers(services, jobs, { queueLimit, startedAt }),
      ...modelHandlers(services, {
        isUsed: (model) => jobs.uses(model),
        onDeleted: (model) => served.drop(model),
      }),
    };
    const server = keep(
      new Server(
        {
          store,
          events,
          handlers,
          metrics,
          logger,
          openai: openaiRoutes({ services, handlers }),
          onError: report,
        },
        { token, host: urlHost, allowOrigins: options.allowOrigins },
      ),
    );
    metrics.watch({
      servedBytes: () => served.bytes,
      eventBacklog: () => events.backlog,
      socketCount: () => server.socketCount,
    });
    await jobs.recover();
    const port = await listen(server, options);
    jobs.start();
    tidying.soon();
    server.ready();

    const ready: DaemonFile = { pid: process.pid, url: `http://${urlHost}:${port}`, version: VERSION };
    const file = path.join(dataDir, 'daemon.json');
    writeFileSync(`${file}.new`, `${JSON.stringify(ready)}\n`, { mode: 0o600 });
    renameSync(`${file}.new`, file);
    isReady = true;
    logger.info({ ...ready, workers, engine: engine.fingerprint }, 'ready');
    options.onReady?.(ready);

    if (!stopping.signal.aborted) {
      await new Promise<void>((resolve) => stopping.signal.addEventListener('abort', () => resolve(), { once: true }));
    }
    rmSync(file, { force: true });
  } finally {
    await closeAll(opened, logger);
    unlisten();
    if (failure !== null) logError(logger, failure);
    // A daemon that was never ready says why not, and nothing else.
    if (isReady) logger.info('stopped');
    log.flush();
  }
  return failure === null ? 'stopped' : 'failed';
}

async function listen(server: Server, { host, port }: DaemonOptions): Promise<number> {
  try {
    return await server.listen(host, port);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    const why = code === 'EADDRINUSE' ? 'the port is in use: take another --port, or 0 for a free one' : String(code);
    throw new GptdError('invalid_spec', `Cannot listen on ${host}:${port}: ${why}.`, { cause: error });
  }
}

/**
 * The first signal asks for a stop. The second one ends the process at once: every event that a client has seen is durable
 * anyway.
 */
function onStopSignal(stopping: AbortController, logger: Logger): () => void {
  const onSignal = (signal: NodeJS.Signals): void => {
    if (stopping.signal.aborted) process.exit(INTERRUPTED_EXIT_CODE);
    logger.info({ signal }, 'stopping');
    stopping.abort();
  };
  process.on('SIGINT', onSignal);
  process.on('SIGTERM', onSignal);
  return () => {
    process.off('SIGINT', onSignal);
    process.off('SIGTERM', onSignal);
  };
}

async function closeAll(parts: { close(): Promise<void> }[], logger: Logger): Promise<void> {
  for (const part of parts.splice(0).reverse()) {
    try {
      await part.close();
    } catch (error) {
      logError(logger, error);
    }
  }
}

/** Returns the bytes of memory that the machine has, or that the container that it runs in may use. */
const memoryBytes = (): number => Math.min(os.totalmem(), process.constrainedMemory() || Infinity);

/** Logs one line for each change of state. It names nothing of the spec but the model. */
function logTransition(logger: Logger, { jobId, kind, model, from, to, elapsedMs, error }: JobTransition): void {
  const seconds = Math.round(elapsedMs) / 1000;
  const fields = { jobId, kind, model, from, seconds, ...(error === undefined ? {} : { error }) };
  if (to === 'failed') logger.warn(fields, 'job failed');
  else logger.info(fields, `job ${to}`);
}
