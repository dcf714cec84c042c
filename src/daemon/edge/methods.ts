// The methods of the wire contract over the daemon's parts: what a client may ask beside following a job.

import process from 'node:process';
import { countParameters } from '../../model/count.ts';
import { GptdError } from '../../model/errors.ts';
import type { StoredCheckpoint, StoredModel } from '../../workers/store/messages.ts';
import { tokenizerName } from '../../model/text/choice.ts';
import type { Services } from '../jobs/context.ts';
import type { Jobs } from '../jobs/queue.ts';
import { resolveModel } from '../threads/model-reference.ts';
import { VERSION } from '../protocol/daemon.ts';
import type { CheckpointRecord, ModelRecord } from '../protocol/models.ts';
import { parseSpec, type Handlers } from './rpc.ts';
import { verifyModel } from '../models/verify.ts';

export function makeHandlers(
  services: Services,
  jobs: Jobs,
  { queueLimit, startedAt }: { queueLimit: number; startedAt: number },
): Omit<Handlers, 'job.subscribe' | 'job.unsubscribe'> {
  const { store, stages, engine } = services;
  return {
    'daemon.status': () =>
      Promise.resolve({
        version: VERSION,
        pid: process.pid,
        engine,
        workers: stages.length,
        uptimeMs: Math.round(performance.now() - startedAt),
        queue: { ...jobs.counts(), limit: queueLimit },
        memory: { rssBytes: process.memoryUsage.rss(), budgetBytes: services.memoryBudgetBytes },
      }),
    'job.submit': async ({ kind, spec, key, priority }) => {
      const { jobId, state } = await jobs.submit({ kind, spec: parseSpec(kind, spec), key, priority });
      return { jobId, state };
    },
    'job.get': ({ jobId }) => jobs.get(jobId),
    'job.list': (filters) => jobs.list(filters),
    'job.cancel': async ({ jobId }) => stateOf(await jobs.cancel(jobId)),
    'job.pause': async ({ jobId }) => stateOf(await jobs.pause(jobId)),
    'job.resume': async ({ jobId }) => stateOf(await jobs.resume(jobId)),
    'model.list': async () => ({ models: (await store.call('listModels', {})).models.map(modelRecord) }),
    'model.get': async ({ model }) => {
      const found = await resolveModel(store, model);
      return modelRecord({ ...found.model, checkpoint: found.checkpoint });
    },
    'model.delete': async ({ model }) => {
      if (jobs.uses(model)) {
        throw new GptdError('conflict', `A job that has not ended uses ${model}: cancel it first.`);
      }
      const deleted = await store.call('deleteModel', { name: model });
      services.served.drop(model);
      services.tidying.soon({ thorough: true });
      return deleted;
    },
    'model.history': async ({ model, after, limit }) => {
      await store.call('getModel', { name: model });
      return await store.call('readHistory', { model, after, limit });
    },
    'model.verify': ({ model }) => verifyModel(services, model),
    'checkpoint.list': async ({ model }) => {
      const { checkpoints } = await store.call('listCheckpoints', { model });
      return { checkpoints: checkpoints.map(checkpointRecord) };
    },
  };
}

const stateOf = <J extends { jobId: string; state: unknown }>({ jobId, state }: J): Pick<J, 'jobId' | 'state'> => ({
  jobId,
  state,
});

const modelRecord = ({ name, config, tokenizer, createdAt, checkpoint }: StoredModel): ModelRecord => ({
  name,
  config,
  parameters: countParameters(config).total_params,
  tokenizer: tokenizerName(tokenizer),
  step: checkpoint.step,
  digest: checkpoint.digest,
  createdAt,
});

const checkpointRecord = ({
  model,
  step,
  digest,
  bytes,
  optimizer,
  meta,
  createdAt,
}: StoredCheckpoint): CheckpointRecord => ({
  ...{ model, step, digest, bytes, optimizer, createdAt },
  loss: meta.loss,
  valLoss: meta.valLoss,
});
