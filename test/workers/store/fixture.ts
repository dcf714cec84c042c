// Holds what the store's tests share: a store in a directory of its own, a tiny model, and checkpoints of that model with chosen
// numbers.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import Database from 'better-sqlite3';
import { onTestFinished } from 'vitest';
import type { GptConfig } from '../../../src/model/config.ts';
import { tensorTable } from '../../../src/model/tensors.ts';
import type { DatasetMeta, StoredCheckpoint, TensorChunk, TensorPart } from '../../../src/workers/store/messages.ts';
import { openStore, type Store } from '../../../src/workers/store/thread.ts';

export const TINY: GptConfig = {
  vocab_size: 40,
  context_length: 8,
  emb_dim: 8,
  n_heads: 2,
  n_layers: 2,
  drop_rate: 0,
  qkv_bias: true,
  tie_weights: false,
};

/** Returns the description of a dataset with that many token ids. */
export const datasetMeta = (tokenCount: number): DatasetMeta => ({
  wideTokens: false,
  tokenCount,
  characterCount: 2 * tokenCount,
  byteCount: 2 * tokenCount,
  tokenizer: { type: 'char', alphabet: 'ab' },
});

/** Changes the database behind the store's back. */
export function damage(dataDir: string, sql: string): void {
  const db = new Database(path.join(dataDir, 'gptd.db'));
  try {
    db.exec(sql);
  } finally {
    db.close();
  }
}

/** Makes a new directory, which is removed after the test. */
export function temporaryDirectory(): string {
  const directory = mkdtempSync(path.join(tmpdir(), 'gptd-store-'));
  onTestFinished(() => rmSync(directory, { recursive: true, force: true }));
  return directory;
}

/** Opens a store, which is closed after the test. */
export function openedStore(dataDir = temporaryDirectory()): { readonly store: Store; readonly dataDir: string } {
  const store = openStore(dataDir);
  onTestFinished(() => store.close());
  return { store, dataDir };
}

/** Returns the single number that a query gives, over a connection of its own. */
export function countRows(dataDir: string, sql: string): number {
  const db = new Database(path.join(dataDir, 'gptd.db'), { readonly: true });
  try {
    return db.prepare<[], number>(sql).pluck().get()!;
  } finally {
    db.close();
  }
}

/** Returns numbers that depend on every argument, so that no two tensors of two seeds are equal. */
export function numbers(size: number, { seed, name }: { readonly seed: number; readonly name: string }): Float32Array {
  const salt = Array.from(name).reduce((sum, character) => (sum * 31 + character.charCodeAt(0)) % 9973, seed);
  return Float32Array.from({ length: size }, (_, i) => Math.sin(1 + salt * 0.37 + i * 0.11));
}

/** Returns `array` in chunks of at most `chunkBytes`, each with a buffer of its own. */
export function chunksOf(
  array: Float32Array,
  {
    tensor,
    part = 'w',
    chunkBytes = 300,
  }: { readonly tensor: string; readonly part?: TensorPart; readonly chunkBytes?: number },
): TensorChunk[] {
  const bytes = new Uint8Array(array.buffer, array.byteOffset, array.byteLength);
  const count = Math.ceil(bytes.length / chunkBytes);
  return Array.from({ length: count }, (_, i) => ({
    tensor,
    part,
    offsetBytes: i * chunkBytes,
    bytes: bytes.slice(i * chunkBytes, (i + 1) * chunkBytes),
  }));
}

/** Returns the chunks of all of TINY's tensors. `seedOf` returns the seed of each tensor. */
export function tinyChunks(part: TensorPart, seedOf: (name: string) => number): TensorChunk[] {
  return tensorTable(TINY).flatMap(({ name, size }) =>
    chunksOf(numbers(size, { seed: seedOf(name), name: part + name }), { tensor: name, part }),
  );
}

export interface WriteOptions {
  readonly model?: string;
  readonly step: number;
  readonly jobId?: string;
  readonly seedOf?: (name: string) => number;
  readonly optimizer?: boolean;
  readonly valLoss?: number | null;
  readonly keepLast?: number;
  readonly create?: boolean;
}

/** Begins, fills and commits a checkpoint of TINY. */
export function writeCheckpoint(store: Store, options: WriteOptions): StoredCheckpoint {
  const {
    model = 'm',
    step,
    jobId = 'job',
    seedOf = () => step,
    optimizer = false,
    valLoss = null,
    create = false,
  } = options;
  const { checkpointId } = store.beginCheckpoint({ model, step, jobId, config: TINY });
  store.putChunks({ checkpointId, chunks: tinyChunks('w', seedOf) });
  if (optimizer) {
    store.putChunks({ checkpointId, chunks: tinyChunks('m', seedOf) });
    store.putChunks({ checkpointId, chunks: tinyChunks('v', seedOf) });
  }
  return store.commitCheckpoint({
    checkpointId,
    meta: { fingerprint: 'test', loss: 1, valLoss },
    newModel: create ? { name: model, config: TINY, tokenizer: { type: 'byte' } } : undefined,
    keepLast: options.keepLast,
  }).checkpoint;
}
