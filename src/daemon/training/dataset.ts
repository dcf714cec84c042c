// A dataset holds token ids for a job. It is known by the digests of its files and the way they are read, so the same text is
// tokenized once. The ids are kept as a blob and shared with the stages' threads in memory. The text is tokenized in several
// requests: between two of them the caller hears of the progress and may stop.

import { createHash, randomUUID } from 'node:crypto';
import { CHUNK_BYTES_MAX } from '../../workers/store/messages.ts';
import type { PreparerCalls, TokenizedData, TokenizeRequest } from '../../workers/data/messages.ts';
import type { StoreClient } from '../threads/store-client.ts';
import type { WorkerThread } from '../threads/worker-thread.ts';

/** This version belongs to a dataset's key. It is increased when the same files give other ids or another description. */
const DATASET_VERSION = 2;

export type Dataset = TokenizedData;

export interface OpenDatasetOptions {
  readonly onProgress?: (doneBytes: number, totalBytes: number) => void;
  /** Throws when the work is to end. It is called between two requests. */
  readonly check?: () => void;
}

/** Loads the dataset, tokenizing it first when the store does not have it. */
export async function openDataset(
  services: { readonly store: StoreClient; readonly preparer: WorkerThread<PreparerCalls> },
  request: TokenizeRequest,
  options: OpenDatasetOptions = {},
): Promise<Dataset> {
  const { store, preparer } = services;
  const key = createHash('sha256')
    .update(JSON.stringify({ version: DATASET_VERSION, ...request }))
    .digest('hex');
  const { dataset } = await store.call('getDataset', { key });
  if (dataset !== null) {
    const { tokens } = await preparer.call('loadTokens', { blob: dataset.blob });
    return { tokens, ...dataset.meta };
  }
  const { tokens, ...meta } = await tokenize(preparer, request, options);
  const blob = await storeTokens(store, tokens, options);
  await store.call('putDataset', { key, blob, meta, sources: request.files.map(({ digest }) => digest) });
  return { tokens, ...meta };
}

async function tokenize(
  preparer: WorkerThread<PreparerCalls>,
  request: TokenizeRequest,
  { onProgress, check }: OpenDatasetOptions,
): Promise<TokenizedData> {
  const source = randomUUID();
  await preparer.call('tokenizeBegin', { source, ...request });
  try {
    for (;;) {
      check?.();
      const { doneBytes, totalBytes, dataset } = await preparer.call('tokenizeNext', { source });
      onProgress?.(doneBytes, totalBytes);
      if (dataset !== null) return dataset;
    }
  } finally {
    await preparer.call('sourceEnd', { source });
  }
}

async function storeTokens(
  store: StoreClient,
  tokens: SharedArrayBuffer,
  { check }: OpenDatasetOptions,
): Promise<string> {
  const { uploadId } = await store.call('beginBlob', {});
  try {
    const bytes = new Uint8Array(tokens);
    for (let start = 0; start < bytes.length; start += CHUNK_BYTES_MAX) {
      check?.();
      await store.call('putBlobChunk', { uploadId, bytes: bytes.slice(start, start + CHUNK_BYTES_MAX) });
    }
    return (await store.call('commitBlob', { uploadId })).hash;
  } catch (error) {
    await store.call('abortBlob', { uploadId });
    throw error;
  }
}
