// The `evaluate` job: how well a checkpoint predicts a text. Every token but the first is predicted once; losses are summed in
// double precision, window by window, so the result does not depend on batches or workers. An interrupted evaluation begins
// again, with the same checkpoint.

import { planEvaluation, type EvaluationWindows } from './evaluate-windows.ts';
import type { JobContext } from './job-context.ts';
import { admit, evaluationBytes } from './memory.ts';
import { holdModel } from './model-reference.ts';
import { Pipeline } from './pipeline.ts';
import { planStages } from './plan.ts';
import type { EvaluateResult } from './protocol.ts';
import { prepareData, stopIfAsked } from './train-data.ts';
import { trainingShape } from './train-shape.ts';

type EvaluateContext = JobContext<'evaluate'>;

export async function runEvaluate(context: EvaluateContext): Promise<EvaluateResult> {
  const { spec, services, jobId } = context;
  const { model, checkpoint } = await holdModel(services.store, { jobId, reference: spec.model });
  const { config } = model;
  const { batchSize } = spec;
  const dataset = await prepareData(context, model);
  const { contextLength: wanted } = trainingShape(spec, config.context_length);
  const plan = planEvaluation({ tokenCount: dataset.tokenCount, contextLength: wanted, stride: spec.stride });
  const { contextLength, microBatchSize } = trainingShape(
    { batchSize, contextLength: plan.contextLength },
    config.context_length,
  );
  const stages = planStages(config, services.stages.length);
  const shape = { batchSize, microBatchSize, contextLength, stageCount: stages.length };
  admit(evaluationBytes(config, shape), { budgetBytes: services.memoryBudgetBytes, what: `Evaluating ${model.name}` });
  stopIfAsked(context);
  const { tokens, wideTokens } = dataset;
  const pipeline = await Pipeline.open(services.stages, {
    lease: jobId,
    plan: stages,
    checkpointId: checkpoint.checkpointId,
    setup: {
      ...{ config, batchSize, microBatchSize, contextLength, tokens, wideTokens },
      ...{ seed: 0, optimizerState: false },
    },
  });
  try {
    const sum = await lossOver(context, { pipeline, plan });
    const loss = sum.loss / sum.tokens;
    // The bytes that the predicted tokens stand for.
    const bytes = dataset.byteCount * (sum.tokens / dataset.tokenCount);
    return {
      ...{ model: model.name, step: checkpoint.step, digest: checkpoint.digest, loss, perplexity: Math.exp(loss) },
      bitsPerByte: bytes === 0 ? null : sum.loss / Math.LN2 / bytes,
      ...{ tokens: sum.tokens, windows: sum.windows, contextLength, stride: plan.stride },
    };
  } finally {
    await pipeline.close();
  }
}

interface LossSum {
  /** Of all counted rows, in nats. */
  readonly loss: number;
  readonly tokens: number;
  readonly windows: number;
}

async function lossOver(
  context: EvaluateContext,
  { pipeline, plan }: { pipeline: Pipeline; plan: EvaluationWindows },
): Promise<LossSum> {
  const { spec, cancelled, emit } = context;
  const total = Math.min(plan.count, (spec.maxBatches ?? Infinity) * spec.batchSize);
  let [loss, tokens] = [0, 0];
  for (let first = 0; first < total; first += spec.batchSize) {
    stopIfAsked(context);
    const size = Math.min(spec.batchSize, total - first);
    const windows = Array.from({ length: size }, (_, i) => plan.at(first + i));
    for (const sum of await pipeline.lossSums(windows, cancelled)) loss += sum;
    for (const { firstRow } of windows) tokens += plan.contextLength - firstRow;
    const done = first + size;
    const data = { phase: 'evaluate', done, total, unit: 'windows' };
    void emit({ type: 'progress', data }, { key: `evaluate:${Math.floor((100 * done) / total)}` });
  }
  return { loss, tokens, windows: total };
}
