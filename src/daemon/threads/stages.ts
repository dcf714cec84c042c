// Starts the stages' threads on one engine: the first takes the best that can be had, the others the same one, because bits
// must not depend on the thread.

import { assert } from '../../model/errors.ts';
import type { EngineChoice, EngineInfo } from '../../workers/settings.ts';
import { STAGE_THREAD, type StageCalls } from '../../workers/stage-messages.ts';
import { WorkerThread, type Caller } from './worker-thread.ts';

export type StageThread = WorkerThread<StageCalls>;
/** A stage's thread for as long as it lives: whoever has put something there calls this and not its successor. */
export type StageCaller = Caller<StageCalls>;

/** Steps leave much garbage behind: with half of this size, generation with guesses is a tenth slower (bench/LOG.md). */
const YOUNG_GENERATION_MB = 48;

export interface Stages {
  readonly stages: readonly StageThread[];
  readonly engine: EngineInfo;
  /** The choice that gives any other thread the same engine. */
  readonly choice: EngineChoice;
}

/** `keep` gets each thread as it starts and closes it in the end. Throws `engine_failed` when there is no such engine. */
export async function startStages(
  count: number,
  options: {
    readonly dataDir: string;
    readonly choice: EngineChoice;
    readonly keep: (thread: StageThread) => StageThread;
  },
): Promise<Stages> {
  const { dataDir, keep } = options;
  const start = (engine: EngineChoice): StageThread =>
    keep(new WorkerThread(STAGE_THREAD, { dataDir, engine }, { youngGenerationMb: YOUNG_GENERATION_MB }));
  const first = start(options.choice);
  const { choice, ...engine } = await first.call('engine', {});
  const others = Array.from({ length: count - 1 }, () => start(choice));
  for (const { fingerprint } of await Promise.all(others.map((thread) => thread.call('engine', {})))) {
    assert(fingerprint === engine.fingerprint, `stages have the engines ${engine.fingerprint} and ${fingerprint}`);
  }
  return { stages: [first, ...others], engine, choice };
}
