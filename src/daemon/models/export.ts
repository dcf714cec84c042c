// The `export` job writes a checkpoint in another program's format. Its files become blobs, which the result names by their
// digests: the daemon opens no path, and the client fetches what it wants. The same checkpoint gives the same bytes.

import { randomUUID } from 'node:crypto';
import { completeTokenizer } from '../../model/text/stored.ts';
import { CHUNK_BYTES_MAX } from '../../workers/store/messages.ts';
import type { ExportPiece } from '../../workers/data/messages.ts';
import { JobHalted, type JobContext } from '../jobs/context.ts';
import type { Kind } from '../jobs/kind.ts';
import { holdModel } from '../threads/model-reference.ts';
import { exportSpec, type ExportedFile, type ExportResult } from '../protocol/interchange.ts';
import type { StoreClient } from '../threads/store-client.ts';

export const exportKind: Kind<'export'> = {
  name: 'export',
  spec: exportSpec,
  lane: 'export',
  atOnce: 1,
  // Tensors are read and written one after the other, so the job takes little memory.
  needs: () => Promise.resolve(null),
  check: async (submission) => {
    await submission.model();
  },
  run,
};

async function run({ jobId, spec, services, cancelled, halted, emit }: JobContext<'export'>): Promise<ExportResult> {
  const { store, preparer } = services;
  const { model, checkpoint } = await holdModel(store, { jobId, reference: spec.model });
  const { files: kept } = await store.call('modelFiles', { name: model.name });
  const { step, digest } = checkpoint;
  const source = randomUUID();
  const blobs = new BlobWriter(store);
  let written = 0;
  try {
    await preparer.call('exportBegin', {
      source,
      checkpointId: checkpoint.checkpointId,
      name: model.name,
      model: { config: model.config, tokenizer: completeTokenizer(model.tokenizer), step, digest },
      kept,
      format: spec.format,
      valueType: spec.type,
    });
    for (let done = false; !done;) {
      const next = await preparer.call('exportNext', { source });
      for (const piece of next.pieces) {
        cancelled.throwIfAborted();
        if (halted.aborted) throw new JobHalted();
        written += piece.bytes.byteLength;
        await blobs.write(piece);
      }
      ({ done } = next);
      void emit(
        { type: 'progress', data: { phase: 'write', done: written, total: next.totalBytes, unit: 'bytes' } },
        { key: `write:${written}` },
      );
    }
    const files = await blobs.finish();
    return { model: model.name, step, digest, format: spec.format, type: spec.type, files };
  } finally {
    await blobs.abort();
    await preparer.call('sourceEnd', { source });
  }
}

/** Turns pieces of files, which come one file after the other, into blobs of full chunks. */
class BlobWriter {
  readonly #store: StoreClient;
  readonly #files: ExportedFile[] = [];
  #name: string | null = null;
  #uploadId = 0;
  #buffer = new Uint8Array(CHUNK_BYTES_MAX);
  #filled = 0;

  constructor(store: StoreClient) {
    this.#store = store;
  }

  async write({ file, bytes }: ExportPiece): Promise<void> {
    if (file !== this.#name) {
      await this.#commit();
      this.#uploadId = (await this.#store.call('beginBlob', {})).uploadId;
      this.#name = file;
    }
    for (let at = 0; at < bytes.length;) {
      const taken = bytes.subarray(at, at + this.#buffer.length - this.#filled);
      this.#buffer.set(taken, this.#filled);
      at += taken.length;
      this.#filled += taken.length;
      if (this.#filled === this.#buffer.length) await this.#flush();
    }
  }

  async finish(): Promise<readonly ExportedFile[]> {
    await this.#commit();
    return this.#files;
  }

  /** Drops the file that is not finished. After `finish` there is none. */
  async abort(): Promise<void> {
    if (this.#name !== null) await this.#store.call('abortBlob', { uploadId: this.#uploadId });
    this.#name = null;
  }

  async #commit(): Promise<void> {
    if (this.#name === null) return;
    if (this.#filled > 0) await this.#flush();
    const { hash, sizeBytes } = await this.#store.call('commitBlob', { uploadId: this.#uploadId });
    this.#files.push({ name: this.#name, digest: `sha256:${hash}`, bytes: sizeBytes });
    this.#name = null;
  }

  async #flush(): Promise<void> {
    const bytes = this.#buffer.slice(0, this.#filled);
    this.#filled = 0;
    await this.#store.call('putBlobChunk', { uploadId: this.#uploadId, bytes });
  }
}
