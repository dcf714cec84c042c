// The store's part of the thread contract: one thread with the only writing connection. Each request is answered exactly once,
// when what it did is durable.

import type { GptConfig } from '../../model/config.ts';
import type { ErrorData } from '../../model/errors.ts';
import type { TokenizerSpec } from '../../model/text/tokenizer.ts';
import type { StoredTokenizer } from '../../model/text/stored.ts';
import type { Quantization } from '../../model/programs/quantize.ts';
import { DTYPE_BYTES } from '../../model/tensors.ts';
import type { RequestOf, ThreadContract } from '../reply.ts';

/** Which of a tensor's arrays a chunk belongs to: the weight, or AdamW's first and second moments. */
export type TensorPart = 'w' | 'm' | 'v';

/**
 * A checkpoint also holds what was made of its weights to serve them faster: see model/programs/quantize.ts. It can be made again
 * at any time.
 */
export type StoredPart = TensorPart | Quantization;

/** The bytes of one array from `offsetBytes` on. A chunk never crosses the array's end and has at most CHUNK_BYTES_MAX bytes. */
export interface TensorChunk<Part extends StoredPart = TensorPart> {
  readonly tensor: string;
  readonly part: Part;
  readonly offsetBytes: number;
  readonly bytes: Uint8Array;
}

/** Chunks of stored content have between 1 and 4 MiB; the last one of an array or a blob may be smaller. */
export const CHUNK_BYTES_MAX = 4 << 20;

/** The elements of one chunk of a checkpoint: a tensor's arrays are cut at multiples of it. */
export const CHUNK_SIZE = CHUNK_BYTES_MAX / DTYPE_BYTES.float32;

/** The chunks of a tensor in order, each in a buffer of its own; `bytes` are only read. */
export function* chunksOf<Part extends StoredPart>(
  bytes: Uint8Array,
  { tensor, part }: { readonly tensor: string; readonly part: Part },
): Generator<TensorChunk<Part>> {
  for (let offsetBytes = 0; offsetBytes < bytes.length; offsetBytes += CHUNK_BYTES_MAX) {
    yield { tensor, part, offsetBytes, bytes: bytes.slice(offsetBytes, offsetBytes + CHUNK_BYTES_MAX) };
  }
}

/** What to read of one tensor: `count` elements from `start` on, a multiple of CHUNK_SIZE. */
export interface ChunkAddress {
  readonly tensor: string;
  readonly part: TensorPart;
  readonly start: number;
  readonly count: number;
}

export interface NewJob {
  readonly jobId: string;
  readonly kind: string;
  readonly spec: unknown;
  readonly key: string | undefined;
  /** A job with a larger priority runs sooner. A job that is submitted again by its key keeps the priority that it has. */
  readonly priority: number;
  /** The submission is refused with `queue_full` when this many jobs are queued. */
  readonly queueLimit: number;
}

export type StoredJobState = 'queued' | 'running' | 'paused' | 'succeeded' | 'failed' | 'cancelled';

/**
 * A row of `jobs`. A row that is damaged is still listed: its spec and result are null, and its error says that it is `corrupt`.
 */
export interface StoredJob {
  readonly jobId: string;
  /** It may be one that this version does not know. */
  readonly kind: string;
  readonly state: StoredJobState;
  /** An older version may have stored it: the kind's schema knows the defaults of what it lacks. */
  readonly spec: unknown;
  readonly priority: number;
  readonly createdAt: number;
  readonly startedAt: number | null;
  readonly endedAt: number | null;
  readonly lastSeq: number;
  readonly result: unknown;
  readonly error: ErrorData | null;
}

/** An event to append. Two events of a job with the same `key` are one: the second is dropped, and its result is null. */
export interface NewEvent {
  readonly jobId: string;
  readonly type: string;
  readonly data: unknown;
  readonly key?: string | undefined;
  /** The job takes this state in the same transaction. Events of an ended job are dropped. */
  readonly state?: StoredJobState | undefined;
}

export interface StoredEvent {
  readonly jobId: string;
  readonly seq: number;
  readonly at: number;
  readonly type: string;
  readonly data: unknown;
}

export interface StoredModel {
  readonly name: string;
  readonly config: GptConfig;
  readonly tokenizer: StoredTokenizer;
  readonly createdAt: number;
  /** The newest committed checkpoint. */
  readonly checkpoint: StoredCheckpoint;
}

/** A file that belongs to a model, like the vocabulary that came with its weights. */
export interface ModelFile {
  readonly name: string;
  readonly blob: string;
}

export interface StoredCheckpoint {
  readonly checkpointId: number;
  readonly model: string;
  readonly step: number;
  readonly digest: string;
  /** The bytes of weights and optimizer state, before chunks are shared. */
  readonly bytes: number;
  readonly optimizer: boolean;
  readonly jobId: string;
  readonly meta: CheckpointMeta;
  readonly createdAt: number;
}

/** What is known of a checkpoint beside its bytes. */
export interface CheckpointMeta {
  readonly fingerprint: string;
  readonly loss: number | null;
  readonly valLoss: number | null;
  readonly training?: TrainingMeta | undefined;
}

/** What a training job has to know to go on from its checkpoint as if nothing had happened. */
export interface TrainingMeta {
  /** The model's step before the job's first one. */
  readonly baseStep: number;
  /** AdamW's updates before the job's first one. */
  readonly baseUpdates: number;
  /** The number of tokens that the job has trained on. */
  readonly tokens: number;
  /** The links of the hash chain before the job's first step and after this one; null where an older gptd began the job. */
  readonly chainStart: string | null;
  readonly chain: string | null;
  /** The job's lowest validation loss so far, and the evaluations since. */
  readonly best: { readonly step: number; readonly valLoss: number } | null;
  readonly evaluationsSinceBest: number;
}

/** One step of a model's history, an evaluation, or both; what was not measured is null. */
export interface MetricsPoint {
  readonly jobId: string;
  readonly step: number;
  readonly at: number;
  readonly loss: number | null;
  readonly lr: number | null;
  readonly gradNorm: number | null;
  readonly tokens: number | null;
  readonly tokensPerSecond: number | null;
  readonly trainLoss: number | null;
  readonly valLoss: number | null;
}

/** The point of a history after which reading goes on. */
export interface HistoryCursor {
  readonly jobId: string;
  readonly step: number;
}

/** What is known of a dataset beside its token ids. */
export interface DatasetMeta {
  /** Whether the ids are uint32; they are uint16 otherwise. */
  readonly wideTokens: boolean;
  readonly tokenCount: number;
  /** The length of the text, in Unicode code points and in UTF-8; 0 for files of token ids. */
  readonly characterCount: number;
  readonly byteCount: number;
  readonly tokenizer: TokenizerSpec | null;
}

export interface StoredDataset {
  readonly key: string;
  /** The blob of little-endian uint16 or uint32 token ids. */
  readonly blob: string;
  readonly meta: DatasetMeta;
  /** The digests of the files that the dataset was made of: it is kept while a job refers to one of them. */
  readonly sources: readonly string[];
}

/** name -> [request, reply]. `bytes` move to the store and must not be used afterwards: see STORE_THREAD. */
export interface StoreCalls {
  /**
   * Takes the directory's lock, opens and migrates the database, and drops unfinished writes. Throws `conflict` when another
   * daemon has the directory.
   */
  open: [{ readonly dataDir: string }, { readonly sqliteVersion: string }];
  close: [Record<string, never>, Record<string, never>];

  submitJob: [NewJob, { readonly job: StoredJob; readonly created: boolean; readonly event: StoredEvent | null }];
  /**
   * Appends all events in one transaction, and replies when it is durable: one result for each item, null for one that was
   * dropped.
   */
  appendEvents: [{ readonly items: readonly NewEvent[] }, { readonly events: readonly (StoredEvent | null)[] }];
  readEvents: [
    { readonly jobId: string; readonly after: number; readonly limit: number; readonly eventType?: string | undefined },
    { readonly events: readonly StoredEvent[]; readonly lastSeq: number },
  ];
  getJob: [{ readonly jobId: string }, StoredJob];
  /** The job that was submitted under a key. */
  findJob: [{ readonly key: string }, { readonly job: StoredJob | null }];
  listJobs: [
    {
      readonly state?: string | undefined;
      readonly kind?: string | undefined;
      readonly all: boolean;
      readonly limit: number;
      /** The id of a job: only jobs that were submitted before it are listed. */
      readonly before?: string | undefined;
      /** The list ends before the specs and results of its jobs exceed this size, but it has at least one job. */
      readonly bytesMax: number;
    },
    { readonly jobs: readonly StoredJob[]; readonly hasMore: boolean },
  ];
  /**
   * Called after a start: jobs that were running are queued again, and a job whose row is damaged fails. The reply lists the jobs
   * that have not ended, the oldest first, in the states that they had: queued, running or paused.
   */
  recoverJobs: [Record<string, never>, { readonly jobs: readonly StoredJob[] }];

  /** Throws DiskFull when the disk has no room for `sizeBytes`, the checkpoint's own estimate. */
  beginCheckpoint: [
    {
      readonly model: string;
      readonly step: number;
      readonly jobId: string;
      readonly config: GptConfig;
      readonly sizeBytes?: number | undefined;
    },
    { readonly checkpointId: number },
  ];
  putChunks: [{ readonly checkpointId: number; readonly chunks: readonly TensorChunk[] }, Record<string, never>];
  /**
   * One small transaction makes the checkpoint visible, creates the model when `newModel` is given (code `conflict` when the
   * name is taken), and drops the older checkpoints of the same job beyond `keepLast`.
   */
  commitCheckpoint: [
    {
      readonly checkpointId: number;
      readonly meta: CheckpointMeta;
      readonly newModel?:
        | {
            readonly name: string;
            readonly config: GptConfig;
            readonly tokenizer: StoredTokenizer;
            readonly files?: readonly ModelFile[] | undefined;
          }
        | undefined;
      readonly keepLast?: number | undefined;
    },
    { readonly checkpoint: StoredCheckpoint },
  ];
  abortCheckpoint: [{ readonly checkpointId: number }, Record<string, never>];
  /**
   * Keeps what was made of a checkpoint's weights for as long as the checkpoint is there. When it is gone already, nothing
   * happens. Throws DiskFull when there is no room.
   */
  putMade: [
    { readonly checkpointId: number; readonly chunks: readonly TensorChunk<Quantization>[] },
    Record<string, never>,
  ];

  getModel: [{ readonly name: string }, StoredModel];
  /** Models whose rows are damaged are left out: `getModel` says what is wrong with one. */
  listModels: [Record<string, never>, { readonly models: readonly StoredModel[] }];
  setTokenizer: [{ readonly name: string; readonly tokenizer: StoredTokenizer }, Record<string, never>];
  deleteModel: [{ readonly name: string }, Record<string, never>];
  /** The files that are kept with a model, by name. */
  modelFiles: [{ readonly name: string }, { readonly files: readonly ModelFile[] }];
  /** `which`: a step, 'best' (lowest validation loss) or 'latest'. */
  getCheckpoint: [{ readonly model: string; readonly which: number | 'best' | 'latest' }, StoredCheckpoint];
  /**
   * Returns the same checkpoint and its model. The checkpoint is kept for the job until the job has ended, even when its turn to
   * be pruned comes meanwhile. A job that holds a checkpoint already gets that one: a run after an interruption goes on with the
   * weights that it began with.
   */
  holdCheckpoint: [
    { readonly jobId: string; readonly model: string; readonly which: number | 'best' | 'latest' },
    { readonly model: StoredModel; readonly checkpoint: StoredCheckpoint },
  ];
  listCheckpoints: [{ readonly model: string }, { readonly checkpoints: readonly StoredCheckpoint[] }];

  hasBlob: [{ readonly hash: string }, { readonly sizeBytes: number | null }];
  beginBlob: [Record<string, never>, { readonly uploadId: number }];
  putBlobChunk: [{ readonly uploadId: number; readonly bytes: Uint8Array }, Record<string, never>];
  /** Throws `corrupt` when the content has another digest than `hash`; without `hash` any content is taken. */
  commitBlob: [
    { readonly uploadId: number; readonly hash?: string | undefined },
    { readonly hash: string; readonly sizeBytes: number },
  ];
  abortBlob: [{ readonly uploadId: number }, Record<string, never>];
  /** The verified bytes of the blob's chunk number `index`; null after the last one. */
  readBlobChunk: [{ readonly hash: string; readonly index: number }, { readonly bytes: Uint8Array | null }];

  /** The points of a model's history after `after`, the oldest first; `next` is null at the end. */
  readHistory: [
    { readonly model: string; readonly after: HistoryCursor | null; readonly limit: number },
    { readonly points: readonly MetricsPoint[]; readonly next: HistoryCursor | null },
  ];

  /** The dataset is null for a damaged row too: its text can be tokenized again. */
  getDataset: [{ readonly key: string }, { readonly dataset: StoredDataset | null }];
  putDataset: [StoredDataset, Record<string, never>];

  /** How many bytes can be written. The reserve that a full disk was given is taken back when there is room. */
  diskSpace: [Record<string, never>, { readonly freeBytes: number }];
  /**
   * Does a small piece of housekeeping: drops old jobs and what only ended ones held, and gives free pages back to the file
   * system. With `thorough` it looks for unused blobs too and gives every page back. It is called again while there is `more`.
   */
  tidy: [{ readonly thorough: boolean; readonly keepJobs: number }, { readonly more: boolean }];
}

export type StoreRequest = RequestOf<StoreCalls>;
export type StoreReply<K extends keyof StoreCalls> = StoreCalls[K][1];

export const STORE_THREAD: ThreadContract<StoreCalls> = {
  file: 'workers/store/thread',
  requests: {
    putChunks: ({ chunks }) => chunks.map(({ bytes }) => bytes),
    putMade: ({ chunks }) => chunks.map(({ bytes }) => bytes),
    putBlobChunk: ({ bytes }) => [bytes],
  },
  replies: {
    readBlobChunk: ({ bytes }) => [bytes],
  },
};
