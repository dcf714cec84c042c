// The preparer's part of the thread contract: one thread for long work on data, which is done piece by piece.

import type { GptConfig } from '../../model/config.ts';
import type { GgmlType } from '../../model/formats/gguf.ts';
import type { ExportedModel } from '../../model/formats/hf-export.ts';
import type { InitScheme } from '../../model/init.ts';
import type { StoredTokenizer } from '../../model/text/stored.ts';
import type { TokenizerSpec } from '../../model/text/tokenizer.ts';
import type { RequestOf, ThreadContract } from '../reply.ts';
import type { DatasetMeta, ModelFile, TensorChunk } from '../store/messages.ts';

/** A part of a list of chunks that the thread makes piece by piece: `sourceNext` is called until it is `done`. */
export interface SourceProgress {
  readonly chunks: readonly TensorChunk[];
  readonly done: boolean;
}

export interface TokenizeRequest {
  readonly files: readonly { readonly digest: string; readonly format: 'text' | 'jsonl' | 'tokens' }[];
  readonly tokenizer: StoredTokenizer;
  readonly vocabSize: number;
}

export interface TokenizedData extends DatasetMeta {
  readonly tokens: SharedArrayBuffer;
}

export interface TokenizeProgress {
  readonly doneBytes: number;
  readonly totalBytes: number;
  readonly dataset: TokenizedData | null;
}

/** The bytes of a piece of a file that an export makes. */
export interface ExportPiece {
  readonly file: string;
  readonly bytes: Uint8Array;
}

export interface PreparerCalls {
  /** Starts the seeded weights of a new model. */
  initBegin: [
    { readonly source: string; readonly config: GptConfig; readonly seed: number; readonly scheme: InitScheme },
    Record<string, never>,
  ];
  /** Starts reading weights from blobs of safetensors; checks every tensor against the configuration first. */
  importBegin: [
    {
      readonly source: string;
      /** The blobs by file name. */
      readonly files: Readonly<Record<string, string>>;
      readonly headCount: number | null;
    },
    {
      readonly config: GptConfig;
      /** What the files tell about the tokenizer; null when they tell nothing, or name a tokenizer that is not known here. */
      readonly tokenizer: TokenizerSpec | null;
      /** Sentences about what was decided on the way. */
      readonly notes: readonly string[];
    },
  ];
  /** Returns up to 16 MiB of the source's next chunks, in table order. */
  sourceNext: [{ readonly source: string }, SourceProgress];
  /** Starts writing a checkpoint in another format: checks that it can be, before the first piece. */
  exportBegin: [
    {
      readonly source: string;
      readonly checkpointId: number;
      /** What the model is called. */
      readonly name: string;
      readonly model: ExportedModel;
      /** The files that came with the model. */
      readonly kept: readonly ModelFile[];
      readonly format: 'safetensors' | 'gguf' | 'onnx';
      readonly valueType: GgmlType;
    },
    Record<string, never>,
  ];
  /** Returns about 16 MiB of the export's next pieces: one file after the other, each in order. */
  exportNext: [
    { readonly source: string },
    { readonly pieces: readonly ExportPiece[]; readonly done: boolean; readonly totalBytes: number },
  ];
  sourceEnd: [{ readonly source: string }, Record<string, never>];
  /** Starts reading data files in order; text is encoded by `tokenizer`, or by the alphabet found when it is 'char'. */
  tokenizeBegin: [{ readonly source: string } & TokenizeRequest, Record<string, never>];
  /** Reads one more piece; `dataset` comes with the last. `sourceEnd` ends it early. */
  tokenizeNext: [{ readonly source: string }, TokenizeProgress];
  /**
   * Counts the windows of `windowTokens` tokens from `windowStarts` on, one every `stride`, that also occur before
   * `windowStarts`.
   */
  duplicateWindows: [
    {
      readonly tokens: SharedArrayBuffer;
      readonly wideTokens: boolean;
      readonly windowStarts: number;
      readonly windowTokens: number;
      readonly stride: number;
    },
    { readonly duplicates: number },
  ];
  /** Starts computing the digest of a checkpoint's weights from its chunks. */
  digestBegin: [
    { readonly source: string; readonly checkpointId: number; readonly config: GptConfig },
    Record<string, never>,
  ];
  /** Reads one more tensor; `digest` comes with the last. Throws `corrupt` for a damaged chunk. `sourceEnd` ends it early. */
  digestNext: [{ readonly source: string }, { readonly digest: string | null }];
  /** Returns the hash chain over a job's stored steps (after, to], begun with `start`; null when one of them is not stored. */
  chainSteps: [
    { readonly jobId: string; readonly start: string; readonly after: number; readonly to: number },
    { readonly chain: string | null },
  ];
  /** Reads the token ids of a stored dataset into shared memory. */
  loadTokens: [{ readonly blob: string }, { readonly tokens: SharedArrayBuffer }];
}

export type PreparerRequest = RequestOf<PreparerCalls>;

export const PREPARER_THREAD: ThreadContract<PreparerCalls> = {
  file: 'workers/data/thread',
  requests: {},
  replies: {
    sourceNext: ({ chunks }) => chunks.map(({ bytes }) => bytes),
    exportNext: ({ pieces }) => pieces.map(({ bytes }) => bytes),
  },
};
