// The `train` job. Everything that a step needs follows from the spec and the step's number, so the job may stop anywhere and
// go on from its newest checkpoint to the same bits; what it has said before is not heard twice.

import type { AdamwStep } from '../model/adamw.ts';
import { GptdError } from '../model/errors.ts';
import { learningRate } from '../model/schedule.ts';
import type { TokenizerSpec } from '../model/tokenizer.ts';
import type { CheckpointMeta, StoredCheckpoint, StoredModel } from '../workers/messages.ts';
import { BackgroundCheckpoint } from './background-checkpoint.ts';
import { checkpointDue, writeCheckpoint } from './checkpoints.ts';
import { openDataset, type Dataset } from './dataset.ts';
import { JobHalted, type JobContext } from './job-context.ts';
import { admit, trainingBytes } from './memory.ts';
import { Pipeline, type StepResult } from './pipeline.ts';
import { planStages } from './plan.ts';
import type { TrainResult, TrainSpec } from './protocol.ts';
import { planWindows, type Windows } from './windows.ts';

/** Events that may wait for the store before training waits for them. */
const EVENT_BACKLOG_MAX = 256;

type TrainContext = JobContext<'train'>;

/** One run of the job's loop. Steps count over the model's life; `index` counts this job's updates from 0. */
interface Run {
  readonly context: TrainContext;
  readonly model: StoredModel;
  readonly pipeline: Pipeline;
  readonly windows: Windows;
  readonly contextLength: number;
  readonly baseStep: number;
  /** Updates that AdamW's moments had seen before this job: its bias correction counts on from there. */
  readonly baseUpdates: number;
  readonly steps: number;
  loss: number | null;
  /** The last validation loss and the step that it belongs to. */
  valLoss: number | null;
  evalStep: number;
}

export async function runTrain(context: TrainContext): Promise<TrainResult> {
  const { spec, services, jobId } = context;
  const { store, stages } = services;
  const model = await store.call('getModel', { name: spec.model });
  const { config } = model;
  const { contextLength, microBatchSize } = trainingShape(spec, config.context_length);
  const plan = planStages(config, stages.length);
  admit(trainingBytes(config, { batchSize: spec.batchSize, microBatchSize, contextLength, stageCount: plan.length }), {
    budgetBytes: services.memoryBudgetBytes,
    what: `Training ${spec.model}`,
  });

  const { from, own } = await startingPoint(context, model);
  const dataset = await prepareData(context, model);
  const windows = planWindows(spec, { tokenCount: dataset.tokenCount, contextLength });
  const baseStep = own ? from.meta.training!.baseStep : from.step;
  const steps = spec.steps ?? (spec.epochs ?? 1) * windows.stepsPerEpoch;
  stopIfAsked(context);
  announce(context, { from, own, dataset, windows, steps });

  const pipeline = await Pipeline.open(stages, {
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
  try {
    const run: Run = {
      ...{ context, model, pipeline, windows, contextLength, baseStep, steps },
      baseUpdates: own ? from.meta.training!.baseUpdates : spec.resume ? updatesOf(from) : 0,
      loss: own ? from.meta.loss : null,
      valLoss: own ? from.meta.valLoss : null,
      evalStep: from.step,
    };
    if (own) sayCheckpoint(context, from);
    return await loop(run, from);
  } finally {
    await pipeline.close();
  }
}

/** Between the parts of a job that cannot be interrupted. */
function stopIfAsked({ cancelled, halted }: TrainContext): void {
  cancelled.throwIfAborted();
  if (halted.aborted) throw new JobHalted();
}

/** Throws `invalid_spec` for a micro-batch or context that does not fit. */
export function trainingShape(
  spec: TrainSpec,
  modelContext: number,
): { readonly contextLength: number; readonly microBatchSize: number } {
  const { batchSize } = spec;
  const contextLength = spec.contextLength ?? modelContext;
  if (contextLength > modelContext) {
    throw new GptdError(
      'invalid_spec',
      `contextLength is ${contextLength}: the model's context holds ${modelContext} tokens.`,
    );
  }
  const microBatchSize = spec.microBatchSize ?? defaultMicroBatchSize(batchSize, contextLength);
  if (batchSize % microBatchSize !== 0) {
    throw new GptdError('invalid_spec', `microBatchSize ${microBatchSize} does not divide batchSize ${batchSize}.`);
  }
  return { contextLength, microBatchSize };
}

/** Rows of a micro-batch below which the matrix products lose speed. */
const MICRO_BATCH_ROWS = 256;
const MICRO_BATCHES_MIN = 4;

/** The largest divisor of the batch that leaves four micro-batches, but no smaller than what makes 256 rows. */
function defaultMicroBatchSize(batchSize: number, contextLength: number): number {
  const divisors = Array.from({ length: batchSize }, (_, i) => i + 1).filter((size) => batchSize % size === 0);
  const enough = divisors.find((size) => size * contextLength >= MICRO_BATCH_ROWS) ?? batchSize;
  const four = divisors.filter((size) => batchSize / size >= MICRO_BATCHES_MIN).at(-1) ?? 1;
  return Math.max(enough, four);
}

/** The job's own newest checkpoint when it ran before, else the model's newest. */
async function startingPoint(
  { services, spec, jobId }: TrainContext,
  model: StoredModel,
): Promise<{ from: StoredCheckpoint; own: boolean }> {
  const { checkpoints } = await services.store.call('listCheckpoints', { model: spec.model });
  const mine = checkpoints
    .filter((checkpoint) => checkpoint.jobId === jobId)
    .sort((a, b) => b.step - a.step)
    .at(0);
  if (mine !== undefined) return { from: mine, own: true };
  if (spec.resume && !model.checkpoint.optimizer) {
    throw new GptdError(
      'invalid_spec',
      `The newest checkpoint of ${spec.model} (step ${model.checkpoint.step}) has no optimizer state to resume from: train without --resume.`,
    );
  }
  return { from: model.checkpoint, own: false };
}

/** Updates that the moments of a checkpoint have seen. */
function updatesOf({ step, meta: { training } }: StoredCheckpoint): number {
  return training === undefined ? 0 : training.baseUpdates + step - training.baseStep;
}

async function prepareData({ spec, services, emit }: TrainContext, model: StoredModel): Promise<Dataset> {
  const stored = model.tokenizer as TokenizerSpec | { type: 'char'; alphabet: null } | null;
  const wanted = spec.tokenizer ?? stored?.type ?? 'none';
  if (stored !== null && wanted !== 'none' && wanted !== stored.type) {
    throw new GptdError(
      'invalid_spec',
      `${spec.model} has the ${stored.type} tokenizer: it cannot be trained with ${wanted}.`,
    );
  }
  const tokenizer =
    wanted === 'none'
      ? null
      : (stored ?? (wanted === 'char' ? { type: 'char' as const, alphabet: null } : { type: wanted }));
  const files = spec.data.map(({ digest, format }) => ({
    digest,
    format: format ?? (wanted === 'none' ? ('tokens' as const) : ('text' as const)),
  }));
  void emit(
    { type: 'progress', data: { phase: 'tokenize', done: 0, total: files.length, unit: 'files' } },
    { key: 'tokenize:0' },
  );
  const dataset = await openDataset(services, { files, tokenizer, vocabSize: model.config.vocab_size });
  const done = { phase: 'tokenize', done: files.length, total: files.length, unit: 'files' };
  void emit({ type: 'progress', data: done }, { key: 'tokenize:1' });
  const unset = stored === null || (stored.type === 'char' && stored.alphabet === null);
  if (unset && dataset.tokenizer !== null) {
    await services.store.call('setTokenizer', { name: spec.model, tokenizer: dataset.tokenizer });
  }
  return dataset;
}

function announce(
  { emit, services }: TrainContext,
  {
    from,
    own,
    dataset,
    windows,
    steps,
  }: { from: StoredCheckpoint; own: boolean; dataset: Dataset; windows: Windows; steps: number },
): void {
  const { trainWindows, validationWindows, stepsPerEpoch } = windows;
  const message = `${dataset.tokenCount} tokens: ${trainWindows} training and ${validationWindows} validation windows, ${stepsPerEpoch} steps an epoch; ${steps} steps to do.`;
  void emit({ type: 'log', data: { message } }, { key: 'data' });
  if (own) void emit({ type: 'log', data: { message: `Going on from the checkpoint at step ${from.step}.` } });
  if ((own || from.step > 0) && from.meta.fingerprint !== services.engine.fingerprint) {
    const change = `The checkpoint was made under "${from.meta.fingerprint}" and this is "${services.engine.fingerprint}": results may differ in their last bits.`;
    void emit({ type: 'log', data: { message: change } });
  }
}

async function loop(run: Run, from: StoredCheckpoint): Promise<TrainResult> {
  const { context, baseStep, steps, windows, contextLength, pipeline } = run;
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
    if (spec.evalEvery > 0 && from.step === baseStep) await evaluate(run, baseStep);
    for (let index = from.step - baseStep; index < steps; index++) {
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
      const result = await pipeline.step({ step, starts, adamw, gradClip, decayAll: spec.decay === 'all' }, cancelled);
      run.loss = result.loss;
      const tokens = (index + 1) * spec.batchSize * contextLength;
      const tokensPerSecond = rate.add(spec.batchSize * contextLength);
      sayStep(run, { step, result, lr, tokens, tokensPerSecond });
      if (services.events.backlog > EVENT_BACKLOG_MAX) await services.events.flush();

      const last = index + 1 === steps;
      if (last ? spec.valSplit > 0 || spec.evalEvery > 0 : spec.evalEvery > 0 && (index + 1) % spec.evalEvery === 0) {
        await evaluate(run, step);
      }
      const due = checkpointDue(spec.checkpointEvery, {
        done: index + 1,
        sinceMs: performance.now() - begunAt,
        busy: writing.busy,
      });
      if (last || due) await save(step);
    }
    const { digest, step } = await writing.settle();
    const tokens = steps * spec.batchSize * contextLength;
    return { model: spec.model, step, digest, loss: run.loss!, valLoss: run.valLoss, tokens };
  } finally {
    await writing.close();
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
  void context.emit({ type: 'step', data }, { key: `step:${step}` });
}

async function evaluate(run: Run, step: number): Promise<void> {
  const { context, pipeline, windows } = run;
  const { evalBatches, batchSize, valSplit } = context.spec;
  const count = evalBatches * batchSize;
  const trainLoss = await pipeline.evaluate(windows.sample('train', count), context.cancelled);
  const valLoss = valSplit > 0 ? await pipeline.evaluate(windows.sample('validation', count), context.cancelled) : null;
  run.valLoss = valLoss;
  run.evalStep = step;
  const perplexity = valLoss === null ? null : Math.exp(valLoss);
  void context.emit({ type: 'eval', data: { step, trainLoss, valLoss, perplexity } }, { key: `eval:${step}` });
}

/** Takes a snapshot of the model as it is now; the checkpoint of it is written while training goes on. */
async function beginCheckpoint(run: Run, step: number): Promise<{ written: Promise<StoredCheckpoint> }> {
  const { context, model, pipeline, baseStep, contextLength } = run;
  const { services, spec, jobId, cancelled } = context;
  const tokens = (step - baseStep) * spec.batchSize * contextLength;
  const meta: CheckpointMeta = {
    fingerprint: services.engine.fingerprint,
    loss: run.loss,
    // Only what was measured on these weights counts for @best.
    valLoss: run.evalStep === step ? run.valLoss : null,
    training: { baseStep, baseUpdates: run.baseUpdates, tokens },
  };
  // Events up to this step are durable before the checkpoint is: a restart continues behind both.
  const told = services.events.flush();
  told.catch(() => undefined);
  const snapshot = await pipeline.snapshot();
  const write = async (): Promise<StoredCheckpoint> => {
    try {
      await told;
      const saved = await writeCheckpoint(
        services.store,
        { model: spec.model, step, jobId, config: model.config, meta, keepLast: spec.keepLast },
        { chunks: snapshot.chunks, signal: cancelled },
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

/** Tokens a second over the last steps. */
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
