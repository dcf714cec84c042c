// This is the `train` job. Everything that a step needs follows from the spec and the step's number, so the job may stop anywhere
// and go on from its newest checkpoint to the same bits. Events that it emits again are dropped.

import type { AdamwStep } from '../../model/programs/adamw.ts';
import { CHAIN_START, nextLink } from '../../model/chain.ts';
import { GptdError } from '../../model/errors.ts';
import { learningRate } from '../../model/schedule.ts';
import type { CheckpointMeta, StoredCheckpoint, StoredModel } from '../../workers/store/messages.ts';
import { BackgroundCheckpoint } from './background-checkpoint.ts';
import { checkpointDue, writeCheckpoint } from '../models/checkpoints.ts';
import { JobHalted, type JobContext } from '../jobs/context.ts';
import { admit, trainingBytes, trainingNeed } from '../threads/memory.ts';
import { resolveModel } from '../threads/model-reference.ts';
import { NotFinite, Pipeline, type StepResult } from './pipeline.ts';
import { planStages } from '../threads/plan.ts';
import type { DatasetReport, TrainResult } from '../protocol/training.ts';
import { adoptTokenizer, prepareData, reportDataset, stopIfAsked } from './data.ts';
import { openSampler, type Sampler } from './samples.ts';
import { checkSchedule, trainingShape } from './shape.ts';
import { planWindows, type Windows } from './windows.ts';

/** The number of events that may wait for the store before training waits for them. */
const EVENT_BACKLOG_MAX = 256;

type TrainContext = JobContext<'train'>;

/** One run of the job's loop. Steps count over the model's life; `index` counts this job's updates from 0. */
interface Run {
  readonly context: TrainContext;
  readonly model: StoredModel;
  readonly pipeline: Pipeline;
  readonly windows: Windows;
  readonly contextLength: number;
  readonly report: DatasetReport;
  readonly sampler: Sampler | null;
  readonly baseStep: number;
  /** The number of updates that AdamW's moments had seen before this job. Its bias correction counts on from there. */
  readonly baseUpdates: number;
  readonly steps: number;
  loss: number | null;
  /** The last validation loss and the step that it belongs to. */
  valLoss: number | null;
  evalStep: number;
  best: { readonly step: number; readonly valLoss: number } | null;
  evaluationsSinceBest: number;
  readonly chainStart: string | null;
  chain: string | null;
}

/** The job throws this when its own checkpoint, from which it would go on, is damaged. */
class DamagedStart extends Error {
  readonly checkpoint: StoredCheckpoint;

  constructor(checkpoint: StoredCheckpoint, cause: GptdError) {
    super(cause.message, { cause });
    this.checkpoint = checkpoint;
  }
}

/**
 * Runs the job. Where a newer checkpoint of its own is damaged, it goes on from an older one: the steps between come out the same
 * again.
 */
export async function runTrain(context: TrainContext): Promise<TrainResult> {
  const damaged = new Set<number>();
  for (;;) {
    try {
      return await trainFrom(context, damaged);
    } catch (error) {
      if (!(error instanceof DamagedStart)) throw error;
      damaged.add(error.checkpoint.checkpointId);
      const message = `${error.message} The checkpoint at step ${error.checkpoint.step} is left aside.`;
      void context.emit({ type: 'log', data: { message } });
    }
  }
}

async function trainFrom(context: TrainContext, damaged: ReadonlySet<number>): Promise<TrainResult> {
  const { spec, services, jobId } = context;
  const { stages } = services;
  const { model, checkpoint } = await resolveModel(services.store, spec.model);
  const { config } = model;
  const { contextLength, microBatchSize } = trainingShape(spec, config.context_length);
  const plan = planStages(config, stages.length);
  const shape = { batchSize: spec.batchSize, microBatchSize, contextLength, stageCount: plan.length };
  const budgetBytes = services.memoryBudgetBytes;
  admit(trainingNeed(config, shape, { model: model.name, budgetBytes }), budgetBytes);

  const { from, own } = await startingPoint(context, { named: checkpoint, damaged });
  const dataset = await prepareData(context, model);
  await adoptTokenizer(context, { model, dataset });
  const windows = planWindows(spec, { tokenCount: dataset.tokenCount, contextLength });
  const baseStep = own ? from.meta.training!.baseStep : from.step;
  const steps = spec.steps ?? (spec.epochs ?? 1) * windows.stepsPerEpoch;
  checkSchedule(spec, steps);
  stopIfAsked(context);
  const report = await reportDataset(context, { dataset, windows, contextLength });
  const sampler = await openSampler(context, { model, dataset });
  announce(context, { from, own, windows, steps, report });

  services.metrics.trainingHolds(trainingBytes(config, shape));
  const opening = Pipeline.open(stages, {
    lease: jobId,
    plan,
    checkpointId: from.checkpointId,
    setup: {
      config,
      batchSize: spec.batchSize,
      microBatchSize,
      contextLength,
      seed: spec.seed,
      tokens: dataset.tokens,
      wideTokens: dataset.wideTokens,
      optimizerState: own || spec.resume,
    },
  });
  const pipeline = await opening.catch((error: unknown) => {
    throw own && error instanceof GptdError && error.code === 'corrupt' ? new DamagedStart(from, error) : error;
  });
  try {
    const run: Run = {
      context,
      model,
      pipeline,
      windows,
      contextLength,
      baseStep,
      steps,
      report,
      sampler,
      ...progressOf(from, own),
      baseUpdates: own ? from.meta.training!.baseUpdates : spec.resume ? updatesOf(from) : 0,
    };
    if (own) sayCheckpoint(context, from);
    return await loop(run, from);
  } finally {
    await pipeline.close();
    services.metrics.trainingHolds(0);
  }
}

/**
 * Resolves to the job's own newest checkpoint that is not damaged. Without one it resolves to the checkpoint that the spec names.
 */
async function startingPoint(
  { services, spec, jobId }: TrainContext,
  { named, damaged }: { named: StoredCheckpoint; damaged: ReadonlySet<number> },
): Promise<{ from: StoredCheckpoint; own: boolean }> {
  const { checkpoints } = await services.store.call('listCheckpoints', { model: named.model });
  const mine = checkpoints.filter((checkpoint) => checkpoint.jobId === jobId).sort((a, b) => b.step - a.step);
  const newest = mine.find(({ checkpointId }) => !damaged.has(checkpointId));
  if (newest !== undefined) return { from: newest, own: true };
  // All checkpoints of the job are damaged, so it begins again with the newest one that was there before them.
  const before = checkpoints.filter(({ checkpointId }) => mine.every((own) => checkpointId < own.checkpointId));
  if (mine.length > 0 && named.jobId === jobId) named = before.at(-1) ?? named;
  if (spec.resume && !named.optimizer) {
    throw new GptdError(
      'invalid_spec',
      `The checkpoint of ${named.model} at step ${named.step} has no optimizer state to resume from: train without --resume.`,
    );
  }
  return { from: named, own: false };
}

/** Returns the number of updates that the moments of a checkpoint have seen. */
function updatesOf({ step, meta: { training } }: StoredCheckpoint): number {
  return training === undefined ? 0 : training.baseUpdates + step - training.baseStep;
}

/** Returns what the job has to remember, as it was at its own checkpoint or as it is at its beginning. */
function progressOf(
  from: StoredCheckpoint,
  own: boolean,
): Pick<Run, 'loss' | 'valLoss' | 'evalStep' | 'best' | 'evaluationsSinceBest' | 'chainStart' | 'chain'> {
  const { training, loss, valLoss } = from.meta;
  const untrained = { chain: CHAIN_START, chainStart: null, best: null, evaluationsSinceBest: 0 };
  const { chain, chainStart, best, evaluationsSinceBest } = training ?? untrained;
  const fresh = { loss: null, valLoss: null, best: null, evaluationsSinceBest: 0, chainStart: chain };
  return {
    evalStep: from.step,
    chain,
    ...(own ? { loss, valLoss, best, evaluationsSinceBest, chainStart } : fresh),
  };
}

function announce(
  { emit, services }: TrainContext,
  {
    from,
    own,
    windows,
    steps,
    report,
  }: { from: StoredCheckpoint; own: boolean; windows: Windows; steps: number; report: DatasetReport },
): void {
  const { tokens, charactersPerToken, trainWindows, validationWindows, duplicateWindows } = report;
  const density = charactersPerToken === null ? '' : ` of ${charactersPerToken.toFixed(2)} characters`;
  const seen = duplicateWindows === 0 ? '' : ` (${duplicateWindows} of them occur in the training part too)`;
  const message = `${tokens} tokens${density}: ${trainWindows} training and ${validationWindows} validation windows${seen}, ${windows.stepsPerEpoch} steps an epoch; ${steps} steps to do.`;
  void emit({ type: 'log', data: { message, dataset: report } }, { key: 'data' });
  if (own) void emit({ type: 'log', data: { message: `Going on from the checkpoint at step ${from.step}.` } });
  if ((own || from.step > 0) && from.meta.fingerprint !== services.engine.fingerprint) {
    const change = `The checkpoint was made under "${from.meta.fingerprint}" and this is "${services.engine.fingerprint}": results may differ in their last bits.`;
    void emit({ type: 'log', data: { message: change } });
  }
}

async function loop(run: Run, from: StoredCheckpoint): Promise<TrainResult> {
  const { context, model, baseStep, steps, windows, contextLength, pipeline } = run;
  const { spec, services, cancelled, halted } = context;
  const rate = new Rate();
  const writing = new BackgroundCheckpoint(from);
  let begunStep = from.step;
  let begunAt = performance.now();
  const save = async (step: number): Promise<void> => {
    if (step === begunStep) return;
    await writing.start(() => beginCheckpoint(run, step));
    [begunStep, begunAt] = [step, performance.now()];
  };
  try {
    if (spec.evalEvery > 0 && from.step === baseStep) await explained(evaluate(run, baseStep), { writing });
    for (let index = from.step - baseStep; index < steps && !patienceSpent(run); index++) {
      const step = baseStep + index + 1;
      if (halted.aborted) {
        await save(step - 1);
        await writing.settle();
        throw new JobHalted();
      }
      writing.check();
      cancelled.throwIfAborted();
      const lr = learningRate(index + 1, { ...spec, steps });
      const { beta1, beta2, eps, weightDecay, gradClip } = spec;
      const adamw: Omit<AdamwStep, 'gradScale'> = {
        step: run.baseUpdates + index + 1,
        lr,
        weightDecay,
        beta1,
        beta2,
        eps,
      };
      const starts = windows.batch(index);
      const startMs = performance.now();
      const stepped = pipeline.step({ step, starts, adamw, gradClip, decayAll: spec.decay === 'all' }, cancelled);
      const result = await explained(stepped, { writing, starts });
      run.loss = result.loss;
      const ms = performance.now() - startMs;
      services.metrics.trainStep({ ms, tokens: spec.batchSize * contextLength, loss: result.loss });
      run.chain = run.chain === null ? null : nextLink(run.chain, { step, ...result });
      const tokens = (index + 1) * spec.batchSize * contextLength;
      const tokensPerSecond = rate.add(spec.batchSize * contextLength);
      sayStep(run, { step, result, lr, tokens, tokensPerSecond });
      if (services.events.backlog > EVENT_BACKLOG_MAX) await services.events.flush();

      const last = index + 1 === steps;
      const evaluates = spec.evalEvery > 0 ? last || (index + 1) % spec.evalEvery === 0 : last && spec.valSplit > 0;
      const improved = evaluates && (await explained(evaluate(run, step), { writing }));
      if (spec.sampleEvery > 0 && (index + 1) % spec.sampleEvery === 0) await run.sampler?.say(pipeline, step);
      const due = checkpointDue(spec.checkpointEvery, {
        done: index + 1,
        sinceMs: performance.now() - begunAt,
        busy: writing.busy,
      });
      if (last || due || improved || patienceSpent(run)) await save(step);
    }
    const { digest, step } = await writing.settle();
    const { loss, valLoss, best, chain } = run;
    return {
      model: model.name,
      step,
      digest,
      loss: loss!,
      valLoss,
      best,
      chain,
      tokens: (step - baseStep) * spec.batchSize * contextLength,
      reason: step === baseStep + steps ? 'steps' : 'patience',
      dataset: run.report,
    };
  } finally {
    await writing.close();
  }
}

function patienceSpent({ context, evaluationsSinceBest }: Run): boolean {
  const { patience } = context.spec;
  return patience !== undefined && evaluationsSinceBest >= patience;
}

/** An error names at most this many windows of a batch. */
const TOLD_WINDOWS_MAX = 64;

/** Adds to the error of a loss that is not finite all that is needed to look into it. */
async function explained<T>(
  work: Promise<T>,
  { writing, starts }: { writing: BackgroundCheckpoint; starts?: readonly number[] },
): Promise<T> {
  try {
    return await work;
  } catch (error) {
    if (!(error instanceof NotFinite)) throw error;
    const saved = await writing.settle();
    const told = starts?.slice(0, TOLD_WINDOWS_MAX).join(', ');
    const more = starts !== undefined && starts.length > TOLD_WINDOWS_MAX ? ', ...' : '';
    const batch = told === undefined ? '' : ` Its windows begin at tokens ${told}${more}.`;
    const good = `${saved.model}@${saved.step} (digest ${saved.digest.slice(0, 12)})`;
    throw new GptdError(
      'engine_failed',
      `${error.message}${batch} The last good checkpoint is ${good}: train on from it with a smaller --lr, a longer --warmup-steps or --grad-clip.`,
      { cause: error },
    );
  }
}

function sayStep(
  { context, baseStep, steps }: Run,
  now: { step: number; result: StepResult; lr: number; tokens: number; tokensPerSecond: number },
): void {
  const { step, result, lr, tokens, tokensPerSecond } = now;
  const left = baseStep + steps - step;
  const tokensLeft = left * (tokens / (step - baseStep));
  const data = {
    step,
    steps: baseStep + steps,
    loss: result.loss,
    lr,
    gradNorm: result.gradNorm,
    tokens,
    tokensPerSecond: Math.round(tokensPerSecond * 10) / 10,
    etaMs: Math.round((tokensLeft / tokensPerSecond) * 1000),
  };
  void context.emit({ type: 'step', data }, { key: `step:${step}`, mayWait: true });
}

/** Emits the losses. Resolves to whether the validation loss is the job's lowest so far. */
async function evaluate(run: Run, step: number): Promise<boolean> {
  const { context, pipeline, windows } = run;
  const { evalBatches, batchSize, valSplit } = context.spec;
  const count = evalBatches * batchSize;
  const lossOf = async (split: 'train' | 'validation'): Promise<number> => {
    const loss = await pipeline.evaluate(windows.sample(split, count), context.cancelled);
    if (!Number.isFinite(loss)) throw new NotFinite(`The evaluation at step ${step} has ${split} loss ${loss}.`);
    return loss;
  };
  const trainLoss = await lossOf('train');
  const valLoss = valSplit > 0 ? await lossOf('validation') : null;
  run.valLoss = valLoss;
  run.evalStep = step;
  const perplexity = valLoss === null ? null : Math.exp(valLoss);
  void context.emit({ type: 'eval', data: { step, trainLoss, valLoss, perplexity } }, { key: `eval:${step}` });
  const improved = valLoss !== null && (run.best === null || valLoss < run.best.valLoss);
  if (improved) run.best = { step, valLoss };
  run.evaluationsSinceBest = improved ? 0 : run.evaluationsSinceBest + 1;
  return improved;
}

/** Takes a snapshot of the model as it is now. Its checkpoint is written while training goes on. */
async function beginCheckpoint(run: Run, step: number): Promise<{ written: Promise<StoredCheckpoint> }> {
  const { context, model, pipeline, baseStep, contextLength } = run;
  const { services, spec, jobId, cancelled } = context;
  const { baseUpdates, chainStart, chain, best, evaluationsSinceBest } = run;
  const tokens = (step - baseStep) * spec.batchSize * contextLength;
  const meta: CheckpointMeta = {
    fingerprint: services.engine.fingerprint,
    loss: run.loss,
    // Only what was measured on these weights counts for @best.
    valLoss: run.evalStep === step ? run.valLoss : null,
    training: { baseStep, baseUpdates, tokens, chainStart, chain, best, evaluationsSinceBest },
  };
  // Events up to this step are durable before the checkpoint is, so a restart continues behind both.
  const told = services.events.flush();
  told.catch(() => undefined);
  const snapshot = await pipeline.snapshot();
  const write = async (): Promise<StoredCheckpoint> => {
    try {
      await told;
      const saved = await writeCheckpoint(
        services.store,
        {
          model: model.name,
          step,
          jobId,
          config: model.config,
          meta,
          keepLast: spec.keepLast,
        },
        {
          chunks: snapshot.chunks,
          signal: cancelled,
          onStored: (stored) => services.metrics.checkpointStored(stored),
          onSpent: (group) => snapshot.giveBack(group),
        },
      );
      sayCheckpoint(context, saved);
      return saved;
    } finally {
      await snapshot.end();
    }
  };
  return { written: write() };
}

function sayCheckpoint({ emit }: TrainContext, { step, digest }: StoredCheckpoint): void {
  void emit({ type: 'checkpoint', data: { step, digest } }, { key: `checkpoint:${step}` });
}

/** Measures the tokens per second over the last steps. */
class Rate {
  readonly #times: { at: number; tokens: number }[] = [{ at: performance.now(), tokens: 0 }];
  #tokens = 0;

  add(tokens: number): number {
    this.#tokens += tokens;
    const now = { at: performance.now(), tokens: this.#tokens };
    this.#times.push(now);
    while (this.#times.length > 2 && this.#times.length > 20) this.#times.shift();
    const first = this.#times[0];
    return (1000 * (now.tokens - first.tokens)) / Math.max(now.at - first.at, 1e-3);
  }
}
