// A new model is made from a source of weights, which the preparer draws or reads. This stores its first checkpoint, its
// tokenizer and its files.

import type { GptConfig } from '../../model/config.ts';
import { countParameters } from '../../model/count.ts';
import { GptdError } from '../../model/errors.ts';
import type { StoredTokenizer } from '../../model/text/stored.ts';
import type { ModelFile, StoredModel, TensorChunk } from '../../workers/store/messages.ts';
import { JobHalted, type JobContext, type Services } from '../jobs/context.ts';
import type { CreateResult } from '../protocol/models.ts';
import { weightsBytes } from '../threads/memory.ts';
import type { StoreClient } from '../threads/store-client.ts';
import { writeCheckpoint } from './checkpoints.ts';

/** The lane of all jobs that make a model. They are bound by the disk, so one of them runs at a time. */
export const MAKING = { lane: 'make', atOnce: 1 } as const;

/** Stores the model that the spec names and resolves to the job's result. Throws `conflict` when the name is taken. */
export async function makeModel(
  context: JobContext<'create'> | JobContext<'import'>,
  {
    config,
    tokenizer,
    source,
    files,
  }: { config: GptConfig; tokenizer: StoredTokenizer; source: string; files?: readonly ModelFile[] },
): Promise<CreateResult> {
  const { services, spec, jobId, emit, cancelled, halted } = context;
  const { store, preparer } = services;
  const parameters = countParameters(config).total_params;
  const total = weightsBytes(config);
  try {
    const existing = await modelNamed(store, spec.model);
    // This job made the model before the daemon was killed, and has not reported it yet.
    if (existing?.checkpoint.jobId === jobId) return resultOf(existing.checkpoint, parameters);
    if (existing !== null) {
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

async function modelNamed(store: StoreClient, name: string): Promise<StoredModel | null> {
  try {
    return await store.call('getModel', { name });
  } catch (error) {
    if (error instanceof GptdError && error.code === 'not_found') return null;
    throw error;
  }
}

const resultOf = (
  { model, step, digest }: { model: string; step: number; digest: string },
  parameters: number,
): CreateResult => ({ model, step, digest, parameters });

/** Yields the preparer's chunks in groups. The next group is requested while the caller works on the last one. */
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
