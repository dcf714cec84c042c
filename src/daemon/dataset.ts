// Token ids for a training job. A dataset is known by the digests of its files and the way they are read, so the same text is
// tokenized once; the ids are kept as a blob and shared with the stages' threads in memory.

import { createHash } from 'node:crypto';
import type { TokenizerSpec } from '../model/tokenizer.ts';
import { CHUNK_BYTES_MAX, type PreparerCalls } from '../workers/messages.ts';
import type { StoreClient } from './store-client.ts';
import type { WorkerThread } from './worker-thread.ts';

export interface Dataset {
  readonly tokens: SharedArrayBuffer;
  readonly wideTokens: boolean;
  readonly tokenCount: number;
  readonly tokenizer: TokenizerSpec | null;
}

interface DatasetMeta {
  readonly wideTokens: boolean;
  readonly tokenCount: number;
  readonly characterCount: number;
  readonly tokenizer: TokenizerSpec | null;
}

/** Loads the dataset, tokenizing it first when the store does not have it. */
export async function openDataset(
  { store, preparer }: { store: StoreClient; preparer: WorkerThread<PreparerCalls> },
  request: PreparerCalls['tokenize'][0],
): Promise<Dataset> {
  const key = createHash('sha256').update(JSON.stringify(request)).digest('hex');
  const { dataset } = await store.call('getDataset', { key });
  if (dataset !== null) {
    const meta = dataset.meta as DatasetMeta;
    const { tokens } = await preparer.call('loadTokens', { blob: dataset.blob });
    return { tokens, ...meta };
  }
  const { tokens, ...meta } = await preparer.call('tokenize', request);
  const blob = await storeTokens(store, tokens);
  await store.call('putDataset', { key, blob, meta, sources: request.files.map(({ digest }) => digest) });
  return { tokens, ...meta };
}

async function storeTokens(store: StoreClient, tokens: SharedArrayBuffer): Promise<string> {
  const { uploadId } = await store.call('beginBlob', {});
  const bytes = new Uint8Array(tokens);
  for (let start = 0; start < bytes.length; start += CHUNK_BYTES_MAX) {
    await store.call('putBlobChunk', { uploadId, bytes: bytes.slice(start, start + CHUNK_BYTES_MAX) });
  }
  return (await store.call('commitBlob', { uploadId })).hash;
}
