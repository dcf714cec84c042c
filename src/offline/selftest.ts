// `gptd selftest` checks that this installation computes and keeps what it should, on this machine. It needs no daemon: it starts
// the same threads in a temporary directory, on a model of 250,000 parameters, and removes everything again.

import { fork } from 'node:child_process';
import { once } from 'node:events';
import { mkdtempSync, rmSync } from 'node:fs';
import os from 'node:os';
import path from 'node:path';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { weightsDigest } from '../model/digest.ts';
import type { EngineInfo } from '../workers/settings.ts';
import { SELFTEST_THREAD, type SelftestCalls } from './selftest-messages.ts';
import { writeCheckpoint } from '../daemon/models/checkpoints.ts';
import { Pipeline, type StepResult } from '../daemon/training/pipeline.ts';
import { planStages } from '../daemon/threads/plan.ts';
import { VERSION } from '../daemon/protocol/daemon.ts';
import { inTurn, referenceChunks, referenceModel } from './selftest-model.ts';
import {
  REFERENCE_ADAMW,
  REFERENCE_CLIP,
  REFERENCE_CONFIG,
  REFERENCE_LOSSES,
  REFERENCE_NORMS,
  REFERENCE_TOKENS,
} from './selftest-reference.ts';
import type { WriterNews, WriterOrder } from './selftest-writer.ts';
import { startStages, type Stages } from '../daemon/threads/stages.ts';
import { StoreClient } from '../daemon/threads/store-client.ts';
import { WorkerThread } from '../daemon/threads/worker-thread.ts';

/** These are errors of float32 sums of a few numbers, which are near one. */
const SUM_ERROR_MAX = 1e-6;
/** Finite differences in float32 are right to about 1e-3; a wrong formula is off by 1e-1. */
const GRADIENT_ERROR_MAX = 1e-2;
/** These errors are relative to PyTorch's losses. The engines differ from them by less than a tenth of this. */
const LOSS_ERROR_MAX = 1e-5;
const NORM_ERROR_MAX = 1e-4;
/** The dropout rate of the run that is compared between layouts. */
const DROP_RATE = 0.1;
const BITS_STEPS = 3;
const WRITER_MS_MAX = 60_000;
/** The exit code that a shell reports for a process that SIGINT ended: 128 and the signal's number. */
const INTERRUPTED_EXIT_CODE = 130;
const WRITER_FILE = fileURLToPath(new URL('./selftest-writer.js', import.meta.url));

export interface SelftestCheck {
  readonly name: string;
  readonly ok: boolean;
  /** Says what was measured, or what went wrong. */
  readonly detail: string;
  readonly elapsedMs: number;
}

export interface SelftestReport {
  readonly version: string;
  readonly engine: EngineInfo;
  readonly ok: boolean;
  readonly checks: readonly SelftestCheck[];
  readonly elapsedMs: number;
}

/** Resolves to the report, failures included. Throws `engine_failed` when there is no such engine. */
export async function runSelftest({
  engine: choice,
}: {
  readonly engine: 'auto' | 'onnx' | 'tensorflow';
}): Promise<SelftestReport> {
  const startedAt = performance.now();
  const dataDir = mkdtempSync(path.join(os.tmpdir(), 'gptd-selftest-'));
  const remove = (): void => rmSync(dataDir, { recursive: true, force: true });
  // Ctrl-C ends the process, which cleans up on its way out.
  const interrupted = (): void => process.exit(INTERRUPTED_EXIT_CODE);
  process.once('exit', remove).once('SIGINT', interrupted).once('SIGTERM', interrupted);
  const opened: { close(): Promise<void> }[] = [];
  const keep = <P extends { close(): Promise<void> }>(part: P): P => {
    opened.push(part);
    return part;
  };
  try {
    const threads = await startStages(2, { dataDir, choice, keep });
    const maths = keep(new WorkerThread(SELFTEST_THREAD, { dataDir, engine: threads.choice }));
    const checks = [
      await check('attention', () => attention(maths)),
      await check('gradients', () => gradients(maths)),
      await check('checkpoint', () => killedCheckpoint(threads, dataDir)),
    ];
    const store = keep(await StoreClient.open({ dataDir }));
    const first = await writeCheckpoint(store, referenceModel('reference'), { chunks: inTurn(referenceChunks()) });
    const run = { threads, checkpointId: first.checkpointId };
    checks.push(await check('training', () => goldenRun(run)), await check('workers', () => equalBits(run)));
    const ok = checks.every((done) => done.ok);
    return {
      version: VERSION,
      engine: threads.engine,
      ok,
      checks,
      elapsedMs: Math.round(performance.now() - startedAt),
    };
  } finally {
    for (const part of opened.reverse()) await part.close();
    remove();
    process.off('exit', remove).off('SIGINT', interrupted).off('SIGTERM', interrupted);
  }
}

/** Runs one check, which throws what went wrong or resolves to what was measured. */
async function check(name: string, measure: () => Promise<string>): Promise<SelftestCheck> {
  const startedAt = performance.now();
  const done = (ok: boolean, detail: string): SelftestCheck => ({
    name,
    ok,
    detail,
    elapsedMs: Math.round(performance.now() - startedAt),
  });
  try {
    return done(true, await measure());
  } catch (error) {
    return done(false, error instanceof Error ? error.message : String(error));
  }
}

function demand(condition: boolean, message: string): asserts condition {
  if (!condition) throw new Error(message);
}

async function attention(maths: WorkerThread<SelftestCalls>): Promise<string> {
  const { sumError, weightAhead, leak } = await maths.call('attention', {});
  demand(
    sumError <= SUM_ERROR_MAX,
    `a row of attention probabilities sums to one only within ${sumError.toExponential(1)}`,
  );
  demand(weightAhead === 0, `a row looks ahead with a probability of ${weightAhead.toExponential(1)}`);
  demand(leak === 0, `a row changes by ${leak.toExponential(1)} with what lies ahead of it`);
  return `rows sum to one within ${sumError.toExponential(1)} and do not depend on what lies ahead`;
}

async function gradients(maths: WorkerThread<SelftestCalls>): Promise<string> {
  const { error, tensor, count } = await maths.call('gradients', {});
  const measured = `${error.toExponential(1)} off in ${tensor}`;
  demand(error <= GRADIENT_ERROR_MAX, `finite differences say that the gradient is ${measured}`);
  return `${count} tensors agree with finite differences, at worst ${measured}`;
}

/** Kills a process in the middle of a checkpoint, then opens what it has left. */
async function killedCheckpoint({ stages }: Stages, dataDir: string): Promise<string> {
  const model = 'killed';
  const { digest } = await killWriter({ dataDir, model });
  const store = await StoreClient.open({ dataDir });
  try {
    const { checkpoints } = await store.call('listCheckpoints', { model });
    demand(
      checkpoints.length === 1 && checkpoints[0].step === 0 && checkpoints[0].digest === digest,
      `a process was killed while it wrote step 1, and now there are the steps ${checkpoints.map(({ step }) => step).join(', ')}`,
    );
    const pipeline = await openPipeline(
      { stages },
      { checkpointId: checkpoints[0].checkpointId, workers: 1, dropRate: 0 },
    );
    const read = await digestOf(pipeline);
    await pipeline.close();
    demand(read === digest, `the weights read back have the digest ${read.slice(0, 12)}, not ${digest.slice(0, 12)}`);
    return `killed while writing: the checkpoint before is whole (digest ${digest.slice(0, 12)}), the unfinished one is gone`;
  } finally {
    await store.close();
  }
}

/** Starts the writer and kills it when it is half through its second checkpoint. */
async function killWriter(order: WriterOrder): Promise<WriterNews> {
  const child = fork(WRITER_FILE, { stdio: ['ignore', 'ignore', 'inherit', 'ipc'], execArgv: [] });
  const ended = once(child, 'exit');
  try {
    child.send(order);
    const signal = AbortSignal.timeout(WRITER_MS_MAX);
    const news = once(child, 'message', { signal }).then(([message]) => message as WriterNews);
    const died = ended.then(([code]) => {
      throw new Error(`the writing process ended by itself, with exit code ${code}`);
    });
    return await Promise.race([news, died]);
  } finally {
    child.kill('SIGKILL');
    await ended;
  }
}

async function openPipeline(
  { stages }: Pick<Stages, 'stages'>,
  { checkpointId, workers, dropRate }: { checkpointId: number; workers: number; dropRate: number },
): Promise<Pipeline> {
  const config = { ...REFERENCE_CONFIG, drop_rate: dropRate };
  const rows = REFERENCE_TOKENS.flat();
  const tokens = new SharedArrayBuffer(2 * rows.length * rows[0].length);
  new Uint16Array(tokens).set(rows.flat());
  return await Pipeline.open(stages, {
    lease: `selftest-${workers}-${dropRate}`,
    plan: planStages(config, workers),
    checkpointId,
    setup: {
      config,
      batchSize: REFERENCE_TOKENS[0].length,
      microBatchSize: 2,
      contextLength: rows[0].length - 1,
      seed: 7,
      tokens,
      wideTokens: false,
      optimizerState: false,
    },
  });
}

async function train(pipeline: Pipeline, stepCount: number): Promise<StepResult[]> {
  const [batchSize, windowLength] = [REFERENCE_TOKENS[0].length, REFERENCE_TOKENS[0][0].length];
  const results: StepResult[] = [];
  for (let step = 1; step <= stepCount; step++) {
    const starts = Array.from({ length: batchSize }, (_, row) => ((step - 1) * batchSize + row) * windowLength);
    const adamw = { ...REFERENCE_ADAMW, step };
    const request = { step, starts, adamw, gradClip: REFERENCE_CLIP, decayAll: false };
    results.push(await pipeline.step(request, new AbortController().signal));
  }
  return results;
}

/** Resolves to the digest of the model's weights as the stages have them. */
async function digestOf(pipeline: Pipeline): Promise<string> {
  const snapshot = await pipeline.snapshot();
  const digest = weightsDigest(REFERENCE_CONFIG);
  for await (const group of snapshot.chunks) {
    for (const { part, tensor, bytes } of group) if (part === 'w') digest.update(tensor, bytes);
    snapshot.giveBack(group);
  }
  await snapshot.end();
  return digest.digest();
}

interface Run {
  readonly threads: Stages;
  readonly checkpointId: number;
}

async function goldenRun({ threads, checkpointId }: Run): Promise<string> {
  const pipeline = await openPipeline(threads, { checkpointId, workers: 1, dropRate: 0 });
  const results = await train(pipeline, REFERENCE_LOSSES.length);
  await pipeline.close();
  const worst = (values: readonly number[], reference: readonly number[]): number =>
    Math.max(...values.map((value, i) => Math.abs(value / reference[i] - 1)));
  const loss = worst(
    results.map((result) => result.loss),
    REFERENCE_LOSSES,
  );
  const norm = worst(
    results.map((result) => result.gradNorm),
    REFERENCE_NORMS,
  );
  demand(loss <= LOSS_ERROR_MAX, `losses differ from PyTorch's by ${loss.toExponential(1)} of their size`);
  demand(norm <= NORM_ERROR_MAX, `gradient norms differ from PyTorch's by ${norm.toExponential(1)} of their size`);
  return `${results.length} steps as PyTorch makes them: losses within ${loss.toExponential(1)}, gradient norms within ${norm.toExponential(1)}`;
}

async function equalBits({ threads, checkpointId }: Run): Promise<string> {
  const runs = await Promise.all(
    [1, 2].map(async (workers) => {
      const pipeline = await openPipeline(threads, { checkpointId, workers, dropRate: DROP_RATE });
      const results = await train(pipeline, BITS_STEPS);
      const digest = await digestOf(pipeline);
      await pipeline.close();
      return { digest, numbers: JSON.stringify(results) };
    }),
  );
  const [one, two] = runs;
  demand(one.numbers === two.numbers, 'losses or gradient norms differ between 1 and 2 workers');
  demand(one.digest === two.digest, 'weights differ between 1 and 2 workers after the same losses');
  return `${BITS_STEPS} steps with dropout give the same bits on 1 and on 2 workers (digest ${one.digest.slice(0, 12)})`;
}
