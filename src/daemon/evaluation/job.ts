// The `evaluate` job measures how well a checkpoint predicts a text. Every token but the first is predicted once. Losses are
// summed in double precision, window by window, so the result does not depend on batches or workers. With `quantize` the text is
// then read again by the programs that serve the quantized weights. An interrupted evaluation begins again, with the same
// checkpoint.

import type { Quantization } from '../../model/programs/quantize.ts';
import type { StoredCheckpoint, StoredModel } from '../../workers/store/messages.ts';
import type { Dataset } from '../training/dataset.ts';
import { planEvaluation, type EvaluationWindow, type EvaluationWindows } from './windows.ts';
import type { JobContext } from '../jobs/context.ts';
import { admit, evaluationBytes } from '../threads/memory.ts';
import { holdModel } from '../threads/model-reference.ts';
import { Pipeline } from '../training/pipeline.ts';
import { planStages } from '../threads/plan.ts';
import type { EvaluateResult, Evaluation } from '../protocol/evaluation.ts';
import type { ServedModels } from '../serving/served-models.ts';
import { servedLossSums } from './served-loss.ts';
import { prepareData, stopIfAsked } from '../training/data.ts';
import { trainingShape } from '../training/shape.ts';

type EvaluateContext = JobContext<'evaluate'>;

/** A checkpoint, and the windows of a text that are to be predicted. */
interface Subject {
  readonly model: StoredModel;
  readonly checkpoint: StoredCheckpoint;
  readonly dataset: Dataset;
  readonly plan: EvaluationWindows;
}

export async function runEvaluate(context: EvaluateContext, served: ServedModels): Promise<EvaluateResult> {
  const { spec, services, jobId } = context;
  const { model, checkpoint } = await holdModel(services.store, { jobId, reference: spec.model });
  const dataset = await prepareData(context, model);
  const { contextLength: wanted } = trainingShape(spec, model.config.context_length);
  const plan = planEvaluation({ tokenCount: dataset.tokenCount, contextLength: wanted, stride: spec.stride });
  const subject = { model, checkpoint, dataset, plan };
  const sum = await float32Loss(context, subject);
  const evaluation = evaluationOf(sum, dataset);
  return {
    model: model.name,
    step: checkpoint.step,
    digest: checkpoint.digest,
    ...evaluation,
    tokens: sum.tokens,
    windows: sum.windows,
    contextLength: plan.contextLength,
    stride: plan.stride,
    ...(spec.quantize !== undefined && {
      quantized: await quantizedEvaluation(context, { ...subject, served, quantize: spec.quantize, evaluation }),
    }),
  };
}

/** Resolves to the loss of the float32 weights, computed by the programs that training evaluates with. */
async function float32Loss(context: EvaluateContext, { model, checkpoint, dataset, plan }: Subject): Promise<LossSum> {
  const { spec, services, jobId, cancelled } = context;
  const { config } = model;
  const { batchSize } = spec;
  const { contextLength, microBatchSize } = trainingShape(
    { batchSize, contextLength: plan.contextLength },
    config.context_length,
  );
  const stages = planStages(config, services.stages.length);
  const shape = { batchSize, microBatchSize, contextLength, stageCount: stages.length };
  admit({ bytes: evaluationBytes(config, shape), what: `Evaluating ${model.name}` }, services.memoryBudgetBytes);
  stopIfAsked(context);
  const { tokens, wideTokens } = dataset;
  const pipeline = await Pipeline.open(services.stages, {
    lease: jobId,
    plan: stages,
    checkpointId: checkpoint.checkpointId,
    setup: {
      config,
      batchSize,
      microBatchSize,
      contextLength,
      tokens,
      wideTokens,
      seed: 0,
      optimizerState: false,
    },
  });
  try {
    return await lossOver(context, {
      plan,
      phase: 'evaluate',
      lossSums: (windows) => pipeline.lossSums(windows, cancelled),
    });
  } finally {
    await pipeline.close();
  }
}

async function quantizedEvaluation(
  context: EvaluateContext,
  {
    model,
    checkpoint,
    dataset,
    plan,
    served,
    quantize,
    evaluation,
  }: Subject & {
    readonly served: ServedModels;
    readonly quantize: Quantization;
    readonly evaluation: Evaluation;
  },
): Promise<NonNullable<EvaluateResult['quantized']>> {
  stopIfAsked(context);
  const loaded = await served.acquire({ model, checkpoint, quantization: quantize });
  try {
    const tokens = dataset.wideTokens ? new Uint32Array(dataset.tokens) : new Uint16Array(dataset.tokens);
    const text = { name: context.jobId, tokens, contextLength: plan.contextLength };
    const sum = await lossOver(context, {
      plan,
      phase: `evaluate ${quantize}`,
      lossSums: (windows) => servedLossSums(loaded, windows, text),
    });
    const quantized = evaluationOf(sum, dataset);
    return { quantize, ...quantized, ratio: quantized.perplexity / evaluation.perplexity };
  } finally {
    served.release(loaded);
  }
}

interface LossSum {
  /** The sum of the losses of all counted rows, in nats. */
  readonly loss: number;
  readonly tokens: number;
  readonly windows: number;
}

function evaluationOf(sum: LossSum, { byteCount, tokenCount }: Dataset): Evaluation {
  const loss = sum.loss / sum.tokens;
  // This is the number of bytes that the predicted tokens stand for.
  const bytes = byteCount * (sum.tokens / tokenCount);
  return { loss, perplexity: Math.exp(loss), bitsPerByte: bytes === 0 ? null : sum.loss / Math.LN2 / bytes };
}

async function lossOver(
  context: EvaluateContext,
  {
    plan,
    phase,
    lossSums,
  }: {
    readonly plan: EvaluationWindows;
    readonly phase: string;
    readonly lossSums: (windows: readonly EvaluationWindow[]) => Promise<number[]>;
  },
): Promise<LossSum> {
  const { spec, emit } = context;
  const total = Math.min(plan.count, (spec.maxBatches ?? Infinity) * spec.batchSize);
  let [loss, tokens] = [0, 0];
  for (let first = 0; first < total; first += spec.batchSize) {
    stopIfAsked(context);
    const size = Math.min(spec.batchSize, total - first);
    const windows = Array.from({ length: size }, (_, i) => plan.at(first + i));
    for (const sum of await lossSums(windows)) loss += sum;
    for (const { firstRow } of windows) tokens += plan.contextLength - firstRow;
    const done = first + size;
    const data = { phase, done, total, unit: 'windows' };
    void emit({ type: 'progress', data }, { key: `${phase}:${Math.floor((100 * done) / total)}` });
  }
  return { loss, tokens, windows: total };
}
