// A client names a checkpoint as NAME, NAME@STEP or NAME@best: here the name is turned into the stored checkpoint.

import type { StoredCheckpoint, StoredModel } from '../../workers/store/messages.ts';
import type { StoreClient } from './store-client.ts';

/** Resolves to the model and the checkpoint of a reference. Throws `not_found` for an unknown model or checkpoint. */
export async function resolveModel(
  store: StoreClient,
  reference: string,
): Promise<{ model: StoredModel; checkpoint: StoredCheckpoint }> {
  const { name, which } = parseReference(reference);
  const model = await store.call('getModel', { name });
  if (which === 'latest') return { model, checkpoint: model.checkpoint };
  return { model, checkpoint: await store.call('getCheckpoint', { model: name, which }) };
}

/**
 * Does the same for a job that works with the checkpoint for a while. The checkpoint is there until the job has ended, however
 * many newer ones training writes, and a run after an interruption gets the same one.
 */
export async function holdModel(
  store: StoreClient,
  { jobId, reference }: { readonly jobId: string; readonly reference: string },
): Promise<{ model: StoredModel; checkpoint: StoredCheckpoint }> {
  const { name, which } = parseReference(reference);
  return await store.call('holdCheckpoint', { jobId, model: name, which });
}

function parseReference(reference: string): { name: string; which: number | 'best' | 'latest' } {
  const [name, which] = reference.split('@') as [string, string?];
  return { name, which: which === undefined ? 'latest' : which === 'best' ? 'best' : Number(which) };
}

/** Returns what a spec of any kind calls its model, with a step perhaps; undefined where it names none. */
export function referenceOf(spec: unknown): string | undefined {
  if (typeof spec !== 'object' || spec === null || !('model' in spec)) return undefined;
  return typeof spec.model === 'string' ? spec.model : undefined;
}

/** Returns the name of that model, without a step. */
export const modelOf = (spec: unknown): string | undefined => referenceOf(spec)?.split('@')[0];
