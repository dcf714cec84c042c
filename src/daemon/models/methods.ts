// These handlers answer the methods of the wire contract that are about models and their checkpoints.

import { countParameters } from '../../model/count.ts';
import { GptdError } from '../../model/errors.ts';
import { tokenizerName } from '../../model/text/choice.ts';
import type { StoredCheckpoint, StoredModel } from '../../workers/store/messages.ts';
import type { Services } from '../jobs/context.ts';
import type { Handlers } from '../protocol/methods.ts';
import type { CheckpointRecord, ModelRecord } from '../protocol/models.ts';
import { resolveModel } from '../threads/model-reference.ts';
import { verifyModel } from './verify.ts';

export type ModelHandlers = Pick<Handlers, Extract<keyof Handlers, `model.${string}` | `checkpoint.${string}`>>;

export interface ModelHandlersOptions {
  /** Whether a job that has not ended uses the model. */
  readonly isUsed: (model: string) => boolean;
  /** Is called when the model is gone from the store. */
  readonly onDeleted: (model: string) => void;
}

export function modelHandlers(services: Services, { isUsed, onDeleted }: ModelHandlersOptions): ModelHandlers {
  const { store } = services;
  return {
    'model.list': async () => ({ models: (await store.call('listModels', {})).models.map(modelRecord) }),
    'model.get': async ({ model }) => {
      const found = await resolveModel(store, model);
      return modelRecord({ ...found.model, checkpoint: found.checkpoint });
    },
    'model.delete': async ({ model }) => {
      if (isUsed(model)) {
        throw new GptdError('conflict', `A job that has not ended uses ${model}: cancel it first.`);
      }
      const deleted = await store.call('deleteModel', { name: model });
      onDeleted(model);
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
  model,
  step,
  digest,
  bytes,
  optimizer,
  createdAt,
  loss: meta.loss,
  valLoss: meta.valLoss,
});
