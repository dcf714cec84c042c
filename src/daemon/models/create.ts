// The jobs that make models or only look at them: `params`, `create` and `import`.

import { randomUUID } from 'node:crypto';
import { resolveConfig, type GptConfig } from '../../model/config.ts';
import { countParameters } from '../../model/count.ts';
import { GptdError } from '../../model/errors.ts';
import { importedTokenizer, newTokenizer } from '../../model/text/choice.ts';
import type { ModelFile, TensorChunk } from '../../workers/store/messages.ts';
import { writeCheckpoint } from './checkpoints.ts';
import { JobHalted, type JobContext, type Services } from '../jobs/context.ts';
import { optimizerBytes, servingBytes, trainingBytes, weightsBytes } from '../threads/memory.ts';
import { planStages } from '../threads/plan.ts';
import { TOKENIZER_FILES } from '../protocol/interchange.ts';
import type { CreateResult, ParamsResult } from '../protocol/models.ts';

/** Exact counts, bytes and the plan of a configuration; nothing is allocated. */
export function describeParameters(config: GptConfig, workers: number): ParamsResult {
  const plan = planStages(config, workers);
  const shape = { batchSize: 4, microBatchSize: 1, contextLength: config.context_length, stageCount: plan.length };
  return {
    config,
    ...countParameters(config),
    memory: {
      weightsBytes: weightsBytes(config),
      optimizerBytes: optimizerBytes(config),
      servingBytes: servingBytes(config),
      trainingBytes: trainingBytes(config, shape),
    },
    plan,
  };
}

export function runParams({ spec, services }: JobContext<'params'>): Promise<ParamsResult> {
  return Promise.resolve(describeParameters(resolveConfig(spec.config), services.stages.length));
}

export async function runCreate(context: JobContext<'create'>): Promise<CreateResult> {
  const { spec, services } = context;
  const config = resolveConfig(spec.config);
  const tokenizer = newTokenizer(config.vocab_size, spec.tokenizer);
  const source = randomUUID();
  await services.preparer.call('initBegin', { source, config, seed: spec.seed, scheme: spec.init });
  return await makeModel(context, { config, tokenizer, source });
}

export async function runImport(context: JobContext<'import'>): Promise<CreateResult> {
  const { spec, services, emit } = context;
  const source = randomUUID();
  const { files } = spec;
  const opened = await services.preparer.call('importBegin', { source, files, headCount: spec.nHeads ?? null });
  for (const [i, message] of opened.notes.entries())
    await emit({ type: 'log', data: { message } }, { key: `note:${i}` });
  const tokenizer = importedTokenizer({
    vocabSize: opened.config.vocab_size,
    named: spec.tokenizer,
    found: opened.tokenizer,
    isNoted: opened.notes.length > 0,
  });
  const kept = TOKENIZER_FILES.flatMap((name) => (name in files ? [{ name, blob: files[name] }] : []));
  return await makeModel(context, { config: opened.config, tokenizer, source, files: kept });
}

async function makeModel(
  context: JobContext<'create'> | JobContext<'import'>,
  {
    config,
    tokenizer,
    source,
    files,
  }: { config: GptConfig; tokenizer: unknown; source: string; files?: readonly ModelFile[] },
): Promise<CreateResult> {
  const { services, spec, jobId, emit, cancelled, halted } = context;
  const { store, preparer } = services;
  const parameters = countParameters(config).total_params;
  const total = weightsBytes(config);
  try {
    const { models } = await store.call('listModels', {});
    const existing = models.find(({ name }) => name === spec.model);
    // This job's own model, made before the daemon was killed and not yet told.
    if (existing?.checkpoint.jobId === jobId) return resultOf(existing.checkpoint, parameters);
    if (existing !== undefined) {
      throw new GptdError(
        'conflict',
        `There is a model ${spec.model} already: take another name, or remove it with "gptd models rm ${spec.model}".`,
      );
    }
    let done = 0;
    const checkpoint = await writeCheckpoint(
      store,
      {
        model: spec.model,
        step: 0,
        jobId,
        config,
        meta: { fingerprint: services.engine.fingerprint, loss: null, valLoss: null },
        newModel: { name: spec.model, config, tokenizer, files },
      },
      {
        chunks: chunksOf(services, source, halted),
        signal: cancelled,
        onStored: (stored) => services.metrics.checkpointStored(stored),
        onBytes: (sizeBytes) => {
          done += sizeBytes;
          void emit(
            { type: 'progress', data: { phase: 'write', done, total, unit: 'bytes' } },
            { key: `write:${done}` },
          );
        },
      },
    );
    return resultOf(checkpoint, parameters);
  } finally {
    await preparer.call('sourceEnd', { source });
  }
}

const resultOf = (
  { model, step, digest }: { model: string; step: number; digest: string },
  parameters: number,
): CreateResult => ({ model, step, digest, parameters });

/** The preparer's chunks in groups, one request ahead of whoever takes them. */
async function* chunksOf(
  { preparer }: Services,
  source: string,
  halted: AbortSignal,
): AsyncGenerator<readonly TensorChunk[]> {
  let coming = preparer.call('sourceNext', { source });
  for (;;) {
    const { chunks, done } = await coming;
    if (halted.aborted) throw new JobHalted();
    if (!done) {
      coming = preparer.call('sourceNext', { source });
      coming.catch(() => undefined);
    }
    if (chunks.length > 0) yield chunks;
    if (done) return;
  }
}
