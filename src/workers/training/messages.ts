// The plain data of training: what a stage holds, some of a step's sequences, the units in which a stage computes gradients and
// updates its tensors, and loans of a block whose gradients another stage computes.

import type { AdamwStep } from '../../model/programs/adamw.ts';
import type { GptConfig } from '../../model/config.ts';

/** Blocks [firstBlock, endBlock), and whether the embeddings and the head are here. A tied wte lives with the head. */
export interface StageRange {
  readonly firstBlock: number;
  readonly endBlock: number;
  readonly embeds: boolean;
  readonly head: boolean;
}

export interface TrainSetup {
  readonly config: GptConfig;
  readonly stage: StageRange;
  readonly batchSize: number;
  readonly microBatchSize: number;
  readonly contextLength: number;
  /** Of dropout. */
  readonly seed: number;
  /** All token ids of the dataset, shared by the stages: uint16, or uint32 when `wideTokens`. */
  readonly tokens: SharedArrayBuffer;
  readonly wideTokens: boolean;
  /** Load AdamW's moments from the checkpoint too; otherwise they begin at zero. */
  readonly optimizerState: boolean;
}

/** Some of a step's sequences: windows of `contextLength` + 1 tokens that begin at `starts`. */
export interface MicroBatch {
  /** Within the step, from 0: sums run in this order. */
  readonly index: number;
  readonly step: number;
  /** Number of its first sequence within the batch. */
  readonly firstSequence: number;
  readonly starts: readonly number[];
}

/** What a stage computes weight gradients of at once: a block, by its number, or the head. */
export type GradientUnit = number | 'head';

/** The weight gradients of one unit for one micro-batch. */
export interface GradientWork {
  readonly micro: MicroBatch;
  readonly unit: GradientUnit;
}

/** A stage's units, in the order in which what they need of a micro-batch gets ready. */
export function gradientUnits(range: Pick<StageRange, 'firstBlock' | 'endBlock' | 'head'>): GradientUnit[] {
  const blocks = Array.from({ length: range.endBlock - range.firstBlock }, (_, i) => range.endBlock - 1 - i);
  return range.head ? ['head', ...blocks] : blocks;
}

interface NamedArray {
  readonly name: string;
  readonly bytes: Float32Array;
}

/**
 * All that it takes to compute a block's weight gradients for one micro-batch, so that any stage of the training can do it. The
 * arrays move there and back.
 */
export interface GradientLoan {
  /** Whether gradients of earlier micro-batches are there to be added to. */
  readonly accumulate: boolean;
  /** Whether no micro-batch follows: the sums of squares are wanted too. */
  readonly last: boolean;
  /** What forward and backward pass have left of the rows. */
  readonly rows: readonly NamedArray[];
  /** Both LayerNorms' tensors. */
  readonly norms: readonly NamedArray[];
  /** Of all tensors of the block. */
  readonly gradients: readonly (NamedArray & { readonly sumOfSquares: number | null })[];
}

/** The arrays of a loan. */
export const loanArrays = ({ rows, norms, gradients }: GradientLoan): readonly Float32Array[] =>
  [...rows, ...norms, ...gradients].map(({ bytes }) => bytes);

/** What a stage updates at once: a block, by its number, or all that it holds outside its blocks. */
export type UpdateUnit = number | 'ends';

/** A stage's units in the order in which the next forward pass needs them. */
export function updateUnits({ firstBlock, endBlock, embeds, head }: StageRange): UpdateUnit[] {
  const blocks = Array.from({ length: endBlock - firstBlock }, (_, i) => firstBlock + i);
  if (embeds) return ['ends', ...blocks];
  return head ? [...blocks, 'ends'] : blocks;
}

/** One optimizer update of all tensors. */
export interface UpdateRequest {
  readonly step: AdamwStep;
  /** Weight decay applies to every tensor, not only to matrices. */
  readonly decayAll: boolean;
}

/** Requests to a stage; see StageCalls. */
export interface UpdateCalls {
  /** Not `done`: a snapshot has no room for what comes next. Read more of it, then send the same request again. */
  trainUpdate: [{ readonly lease: string; readonly unit: UpdateUnit } & UpdateRequest, { readonly done: boolean }];
}

/** One of the steps of a loan between two stages of a training: the number of the other one, and a name that both know. */
interface Loan {
  readonly lease: string;
  readonly with: number;
  readonly key: string;
}

/** Loans between stages. They take the place of what the owner would do itself, and change no bits. */
export interface LoanCalls {
  /** Moves what a block's weight gradients take to another stage, which computes them and sends all back. */
  trainLend: [{ readonly micro: MicroBatch; readonly block: number } & Loan, Record<string, never>];
  trainWeightGradientsFor: [Loan, Record<string, never>];
  trainTakeBack: [{ readonly block: number } & Loan, Record<string, never>];
}
