// The stages' part of the thread contract. Each stage is one thread, which owns a contiguous range of blocks. Requests are unions
// on a string `type`, each is answered exactly once, and big arrays move instead of being copied. Nothing here knows sockets or
// JSON-RPC.

import type { MessagePort } from 'node:worker_threads';
import type { GptConfig } from '../model/config.ts';
import type { Quantization } from '../model/programs/quantize.ts';
import type { FollowRequest, SampledRows, SequenceBegin, ServeShare } from './serving/messages.ts';
import type { RequestOf, ThreadContract } from './reply.ts';
import type { EngineChoice, EngineInfo } from './settings.ts';
import type { ChunkAddress, TensorChunk } from './store/messages.ts';
import type { GradientWork, LoanCalls, MicroBatch, StageRange, TrainSetup, UpdateCalls } from './training/messages.ts';

/** name -> [request, reply]. `lease` names a training run or a served model on the thread. */
export interface StageCalls extends UpdateCalls, LoanCalls {
  trainLoad: [
    {
      readonly lease: string;
      readonly checkpointId: number;
      readonly setup: TrainSetup;
      /** A port to each stage of the training, by its number; null stands for this one. */
      readonly ports: readonly (MessagePort | null)[];
    },
    Record<string, never>,
  ];
  trainEmbed: [
    { readonly lease: string; readonly micro: MicroBatch; readonly train: boolean },
    { readonly x: Float32Array },
  ];
  /** The stage with the head goes on to its backward pass at once: the stages before it wait for `dx`. */
  trainForward: [
    { readonly lease: string; readonly micro: MicroBatch; readonly x: Float32Array },
    { readonly y: Float32Array } | { readonly losses: Float32Array; readonly dx: Float32Array },
  ];
  trainBackward: [
    { readonly lease: string; readonly micro: MicroBatch; readonly dy: Float32Array },
    { readonly dx: Float32Array },
  ];
  /** Adds a micro-batch's weight gradients for one unit. Micro-batches come in order. */
  trainWeightGradients: [{ readonly lease: string } & GradientWork, Record<string, never>];
  trainEmbedBackward: [
    { readonly lease: string; readonly micro: MicroBatch; readonly dx: Float32Array },
    Record<string, never>,
  ];
  /** Ends the backward pass of a step; the reply has the gradients' sums of squares, in table order. */
  trainFinish: [
    { readonly lease: string },
    { readonly squares: readonly { readonly tensor: string; readonly sumOfSquares: number }[] },
  ];
  trainReset: [{ readonly lease: string }, Record<string, never>];
  trainEvaluate: [
    { readonly lease: string; readonly micro: MicroBatch; readonly x: Float32Array },
    { readonly y: Float32Array | null; readonly losses: Float32Array | null },
  ];
  /** The ids of one sequence -> x (R, D), without dropout. */
  trainDecodeEmbed: [{ readonly lease: string; readonly ids: readonly number[] }, { readonly x: Float32Array }];
  /**
   * x (R, D) of one sequence -> x for the next stage, or the token that follows row `last`; `index` counts the generated tokens.
   */
  trainDecode: [
    {
      readonly lease: string;
      readonly x: Float32Array;
      readonly last: number;
      readonly temperature: number;
      readonly seed: number;
      readonly index: number;
    },
    { readonly x: Float32Array | null; readonly id: number | null },
  ];
  /** Begins a snapshot, between two steps: `trainRead` then reads the arrays as they are now, whatever is updated meanwhile. */
  trainSnapshot: [{ readonly lease: string; readonly keptBytesMax: number }, Record<string, never>];
  /** Copies chunks of the snapshot to shared memory, which is as long as all of them together. Each chunk is read once. */
  trainRead: [
    {
      readonly lease: string;
      readonly addresses: readonly ChunkAddress[];
      readonly into: Float32Array<SharedArrayBuffer>;
    },
    Record<string, never>,
  ];
  trainSnapshotEnd: [{ readonly lease: string }, Record<string, never>];

  serveLoad: [
    {
      readonly lease: string;
      readonly checkpointId: number;
      readonly config: GptConfig;
      readonly stage: StageRange;
      readonly quantization: Quantization | null;
    },
    /** The quantized matrices that the store did not have: it is to keep them. */
    { readonly made: readonly TensorChunk<Quantization>[] },
  ];
  /** Returns wte[id] + wpe[position] (rows, D) for a model whose embeddings are not on its first stage. */
  serveEmbed: [
    { readonly lease: string; readonly ids: readonly number[]; readonly shares: readonly ServeShare[] },
    { readonly x: Float32Array },
  ];
  /**
   * Runs one step. Its input is the ids of all shares' rows, or x (rows, D) from the stage before. The reply is x for the next
   * stage. On the stage with the head it is `sampled`, which has an entry for each share, and `losses`: `targets` are the next
   * tokens of the step's last rows, and each has its loss, in nats.
   */
  serveStep: [
    {
      readonly lease: string;
      readonly input: readonly number[] | Float32Array;
      readonly shares: readonly ServeShare[];
      /** The sequences that the stage with the head does not know yet. */
      readonly begins?: readonly SequenceBegin[] | undefined;
      readonly targets?: readonly number[] | undefined;
    },
    {
      readonly x: Float32Array | null;
      readonly sampled: readonly (SampledRows | null)[] | null;
      readonly losses: readonly number[] | null;
    },
  ];
  /**
   * Runs steps on a stage that is the whole model. The first one has a row of each sequence for the token that the step before
   * samples, so it can be requested while that step is under way. Further steps follow: see FollowRequest.
   */
  serveFollow: [FollowRequest, { readonly steps: readonly (readonly (SampledRows | null)[])[] }];
  /**
   * Ends sequences. With `keepCaches` other sequences can still fork from their caches, until the sequences are ended without it.
   */
  serveEnd: [
    { readonly lease: string; readonly sequences: readonly string[]; readonly keepCaches: boolean },
    Record<string, never>,
  ];

  unload: [{ readonly lease: string }, Record<string, never>];
  /** Returns the thread's engine, and the choice that gives another thread the same engine. */
  engine: [Record<string, never>, EngineInfo & { readonly choice: EngineChoice }];
}

export type StageRequest = RequestOf<StageCalls>;

export const STAGE_THREAD: ThreadContract<StageCalls> = {
  file: 'workers/stage',
  requests: {
    trainLoad: ({ ports }) => ports,
    trainForward: ({ x }) => [x],
    trainBackward: ({ dy }) => [dy],
    trainEmbedBackward: ({ dx }) => [dx],
    trainEvaluate: ({ x }) => [x],
    trainDecode: ({ x }) => [x],
    serveStep: ({ input }) => (input instanceof Float32Array ? [input] : []),
  },
  replies: {
    trainEmbed: ({ x }) => [x],
    trainForward: (reply) => ('y' in reply ? [reply.y] : [reply.losses, reply.dx]),
    trainBackward: ({ dx }) => [dx],
    trainEvaluate: ({ y, losses }) => [y, losses],
    trainDecodeEmbed: ({ x }) => [x],
    trainDecode: ({ x }) => [x],
    serveLoad: ({ made }) => made.map(({ bytes }) => bytes),
    serveEmbed: ({ x }) => [x],
    serveStep: ({ x }) => [x],
  },
};
