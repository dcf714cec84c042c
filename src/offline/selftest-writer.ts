// The self-test starts this process in order to kill it. The process makes a model in the data directory that it is told, then
// writes a second checkpoint and never commits it. It says when half of that is durable.

import process from 'node:process';
import { writeCheckpoint } from '../daemon/models/checkpoints.ts';
import { inTurn, referenceChunks, referenceModel } from './selftest-model.ts';
import { StoreClient } from '../daemon/threads/store-client.ts';

export interface WriterOrder {
  readonly dataDir: string;
  readonly model: string;
}

export interface WriterNews {
  /** The digest of the checkpoint that is complete. */
  readonly digest: string;
}

process.once('message', (order: WriterOrder) => {
  void write(order);
});
// The process that was to kill this one is gone.
process.once('disconnect', () => process.exit());

async function write({ dataDir, model }: WriterOrder): Promise<void> {
  const store = await StoreClient.open({ dataDir });
  const first = referenceModel(model);
  const { digest } = await writeCheckpoint(store, first, { chunks: inTurn(referenceChunks()) });
  const { config, jobId } = first;
  const { checkpointId } = await store.call('beginCheckpoint', { model, config, jobId, step: 1 });
  const chunks = referenceChunks();
  for (const [index, chunk] of chunks.entries()) {
    if (index === Math.floor(chunks.length / 2)) process.send!({ digest } satisfies WriterNews);
    await store.call('putChunks', { checkpointId, chunks: [chunk] });
  }
}
