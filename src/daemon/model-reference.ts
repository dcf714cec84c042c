// NAME, NAME@STEP and NAME@best: from what a client writes to a stored checkpoint.

import type { StoredCheckpoint, StoredModel } from '../workers/messages.ts';
import type { StoreClient } from './store-client.ts';

/** Throws `not_found` for an unknown model or checkpoint. */
export async function resolveModel(
  store: StoreClient,
  reference: string,
): Promise<{ model: StoredModel; checkpoint: StoredCheckpoint }> {
  const [name, which] = reference.split('@') as [string, string?];
  const model = await store.call('getModel', { name });
  if (which === undefined) return { model, checkpoint: model.checkpoint };
  const checkpoint = await store.call('getCheckpoint', {
    model: name,
    which: which === 'best' ? 'best' : Number(which),
  });
  return { model, checkpoint };
}

/** The model's name in a spec, without a step. */
export function modelOf(spec: unknown): string | undefined {
  const { model } = spec as { model?: string };
  return model?.split('@')[0];
}
