// A checkpoint is written from a source of groups of tensor chunks. Each group goes to the store in one transaction while the
// next groups are made. Nothing is visible before the last transaction, a small one, commits the checkpoint.

import type { GptConfig } from '../../model/config.ts';
import type { CheckpointMeta, StoreCalls, StoredCheckpoint, TensorChunk } from '../../workers/store/messages.ts';
import { optimizerBytes, weightsBytes } from '../threads/memory.ts';
import type { StoreClient } from '../threads/store-client.ts';

/** The number of groups that may wait for the store while more are read. */
const GROUPS_AHEAD = 2;

/** The time between checkpoints when the spec does not set it. */
const INTERVAL_MS_DEFAULT = 60_000;

/**
 * Whether a training job writes a checkpoint after its update number `done`. `every` is a number of steps, with 0 for none, or a
 * time like "60s". A checkpoint that is due by the clock waits while another one is being written; one that is due by steps is
 * always written.
 */
export function checkpointDue(
  every: number | string | undefined,
  { done, sinceMs, busy }: { done: number; sinceMs: number; busy: boolean },
): boolean {
  if (typeof every === 'number') return every > 0 && done % every === 0;
  const intervalMs = every === undefined ? INTERVAL_MS_DEFAULT : Number.parseInt(every, 10) * 1000;
  return !busy && sinceMs >= intervalMs;
}

export interface NewCheckpoint {
  readonly model: string;
  readonly step: number;
  readonly jobId: string;
  readonly config: GptConfig;
  readonly meta: CheckpointMeta;
  /** Is set when the checkpoint is the first of a new model. */
  readonly newModel?: StoreCalls['commitCheckpoint'][0]['newModel'];
  readonly keepLast?: number | undefined;
}

/**
 * Stores the chunks and commits the checkpoint. On any failure, an abort included, what was stored so far is dropped. `onBytes`
 * gets the size of each group as it is sent to the store, and `onStored` the duration and the bytes of the whole checkpoint.
 * `onSpent` gets each group back when it has been stored.
 */
export async function writeCheckpoint(
  store: StoreClient,
  checkpoint: NewCheckpoint,
  {
    chunks,
    signal,
    onBytes,
    onStored,
    onSpent,
  }: {
    chunks: AsyncIterable<readonly TensorChunk[]>;
    signal?: AbortSignal;
    onBytes?: (sizeBytes: number) => void;
    onStored?: (stored: { readonly ms: number; readonly bytes: number }) => void;
    onSpent?: (chunks: readonly TensorChunk[]) => void;
  },
): Promise<StoredCheckpoint> {
  const { model, step, jobId, config } = checkpoint;
  const startMs = performance.now();
  // A new model has no optimizer state.
  const sizeBytes = weightsBytes(config) + (checkpoint.newModel === undefined ? optimizerBytes(config) : 0);
  const { checkpointId } = await store.call('beginCheckpoint', { model, step, jobId, config, sizeBytes });
  const puts: Promise<unknown>[] = [];
  try {
    for await (const group of chunks) {
      signal?.throwIfAborted();
      if (puts.length > GROUPS_AHEAD) await puts.shift();
      const sizeBytes = group.reduce((sum, { bytes }) => sum + bytes.byteLength, 0);
      const put = store.call('putChunks', { checkpointId, chunks: group }).then(() => onSpent?.(group));
      put.catch(() => undefined);
      puts.push(put);
      onBytes?.(sizeBytes);
    }
    await Promise.all(puts);
    const { meta, newModel, keepLast } = checkpoint;
    const { checkpoint: stored } = await store.call('commitCheckpoint', { checkpointId, meta, newModel, keepLast });
    onStored?.({ ms: performance.now() - startMs, bytes: stored.bytes });
    return stored;
  } catch (error) {
    await Promise.allSettled(puts);
    // On a full disk even this may fail. The next call that drops something drops this checkpoint too.
    await store.call('abortCheckpoint', { checkpointId }).catch(() => undefined);
    throw error;
  }
}
