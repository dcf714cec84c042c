// The entry of the preparer's thread: long work on data that must not hold up the main thread or a stage. It makes the
// weights of new models, reads weights from uploads, writes them in other formats, and turns data files into token ids.

import { workerData } from 'node:worker_threads';
import { assert } from '../../model/errors.ts';
import { initialTensors } from '../../model/init.ts';
import { countDuplicateWindows } from '../../model/text/window-duplicates.ts';
import { openReader, type ChunkReader } from '../store/reader.ts';
import { exportedBytes, openExport } from './export-source.ts';
import { openImport } from './import-source.ts';
import {
  PREPARER_THREAD,
  type ExportPiece,
  type PreparerCalls,
  type PreparerRequest,
  type SourceProgress,
  type TokenizeProgress,
} from './messages.ts';
import { chunksOf, type TensorChunk } from '../store/messages.ts';
import type { WorkerSettings } from '../settings.ts';
import { replying } from '../reply.ts';
import { loadTokens, tokenize } from './tokenize.ts';
import { chainSteps, digestOf } from './verify.ts';

/** One `sourceNext` returns this many bytes at the most, but for the rest of a last chunk that begins below the limit. */
const SOURCE_BYTES_MAX = 16 << 20;

/** One `tokenizeNext` reads at least this many bytes of data files, unless they end. */
const TOKENIZED_BYTES_MIN = 1 << 20;

const { dataDir } = workerData as WorkerSettings;
const sources = new Map<string, Iterator<TensorChunk>>();
const tokenizings = new Map<string, AsyncIterator<TokenizeProgress>>();
const digests = new Map<string, Iterator<string | null>>();
const exports = new Map<string, { readonly pieces: Iterator<ExportPiece>; readonly totalBytes: number }>();
let opened: ChunkReader | null = null;

function reader(): ChunkReader {
  opened ??= openReader(dataDir);
  return opened;
}

/** Yields weights as chunks, each in a buffer of its own. */
function* weightChunks(tensors: Iterable<{ name: string; data: Float32Array }>): Generator<TensorChunk> {
  for (const { name, data } of tensors) {
    yield* chunksOf(new Uint8Array(data.buffer, data.byteOffset, data.byteLength), { tensor: name, part: 'w' });
  }
}

function next(source: string): SourceProgress {
  const iterator = sources.get(source);
  assert(iterator !== undefined, `no source ${source}`);
  const chunks: TensorChunk[] = [];
  for (let sizeBytes = 0; sizeBytes < SOURCE_BYTES_MAX; sizeBytes += chunks.at(-1)!.bytes.length) {
    const { value, done } = iterator.next() as IteratorResult<TensorChunk, undefined>;
    if (done === true) return { chunks, done };
    chunks.push(value);
  }
  return { chunks, done: false };
}

/** Goes on until another megabyte is read. */
async function tokenizeMore(source: string): Promise<TokenizeProgress> {
  const iterator = tokenizings.get(source);
  assert(iterator !== undefined, `no tokenizing ${source}`);
  let begunAt: number | null = null;
  for (;;) {
    const { value: progress, done } = (await iterator.next()) as IteratorResult<TokenizeProgress, undefined>;
    assert(done !== true, `tokenizing ${source} is done`);
    begunAt ??= progress.doneBytes;
    if (progress.dataset !== null || progress.doneBytes - begunAt >= TOKENIZED_BYTES_MIN) return progress;
  }
}

function nextPieces(source: string): PreparerCalls['exportNext'][1] {
  const state = exports.get(source);
  assert(state !== undefined, `no export ${source}`);
  const { pieces: iterator, totalBytes } = state;
  const pieces: ExportPiece[] = [];
  for (let sizeBytes = 0; sizeBytes < SOURCE_BYTES_MAX; sizeBytes += pieces.at(-1)!.bytes.length) {
    const { value, done } = iterator.next() as IteratorResult<ExportPiece, undefined>;
    if (done === true) return { pieces, done, totalBytes };
    pieces.push(value);
  }
  return { pieces, done: false, totalBytes };
}

async function handle(request: PreparerRequest): Promise<PreparerCalls[keyof PreparerCalls][1]> {
  switch (request.type) {
    case 'initBegin': {
      const { source, config, seed, scheme } = request;
      sources.set(source, weightChunks(initialTensors(config, { seed, scheme })));
      return {};
    }
    case 'importBegin': {
      const { chunks, ...found } = await openImport(reader(), request);
      sources.set(request.source, chunks[Symbol.iterator]());
      return found;
    }
    case 'sourceNext':
      return next(request.source);
    case 'exportBegin': {
      const pieces = await openExport(reader(), request);
      exports.set(request.source, { pieces: pieces[Symbol.iterator](), totalBytes: exportedBytes(request) });
      return {};
    }
    case 'exportNext':
      return nextPieces(request.source);
    case 'sourceEnd':
      for (const map of [sources, exports, tokenizings, digests]) map.delete(request.source);
      return {};
    case 'tokenizeBegin':
      tokenizings.set(request.source, tokenize(reader(), request));
      return {};
    case 'tokenizeNext':
      return await tokenizeMore(request.source);
    case 'duplicateWindows': {
      const { tokens, wideTokens, windowStarts: from, windowTokens: length, stride } = request;
      const ids = wideTokens ? new Uint32Array(tokens) : new Uint16Array(tokens);
      return { duplicates: countDuplicateWindows(ids, { from, length, stride }) };
    }
    case 'digestBegin':
      digests.set(request.source, digestOf(reader(), request));
      return {};
    case 'digestNext': {
      const next = digests.get(request.source)?.next();
      assert(next !== undefined && next.done !== true, `no digest ${request.source} under way`);
      return { digest: next.value };
    }
    case 'chainSteps':
      return chainSteps(reader(), request);
    case 'loadTokens':
      return loadTokens(reader(), request.blob);
    default:
      request satisfies never;
      throw new Error('unknown request');
  }
}

export default replying(handle, PREPARER_THREAD);
