// The plain data of training: what a stage holds, the micro-batches of a step, the units in which a stage computes gradients and
// updates its tensors, and the loans of blocks whose gradients another stage computes.

import type { AdamwStep } from '../../model/programs/adamw.ts';
import type { GptConfig } from '../../model/config.ts';

/** A stage holds blocks [firstBlock, endBlock), and perhaps the embeddings and the head. A tied wte lives with the head. */
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
  /** The seed of dropout. */
  readonly seed: number;
  /** All token ids of the dataset, shared by the stages: uint16, or uint32 when `wideTokens`. */
  readonly tokens: SharedArrayBuffer;
  readonly wideTokens: boolean;
  /** Whether AdamW's moments are loaded from the checkpoint too; otherwise they begin at zero. */
  readonly optimizerState: boolean;
}

/** Some of a step's sequences: windows of `contextLength` + 1 tokens that begin at `starts`. */
export interface MicroBatch {
  /** The micro-batch's number within the step, from 0: sums run in this order. */
  readonly index: number;
  readonly step: number;
  /** The number of its first sequence within the batch. */
  readonly firstSequence: number;
  readonly starts: readonly number[];
}

/** A unit whose weight gradients are computed together: a block, by its number, or the head. */
export type GradientUnit = number | 'head';

/** The weight gradients of one unit for one micro-batch. */
export interface GradientWork {
  readonly micro: MicroBatch;
  readonly unit: GradientUnit;
}

/** Returns a stage's units in the order in which a micro-batch's backward pass makes their gradients possible. */
export function gradientUnits(range: Pick<StageRange, 'firstBlock' | 'endBlock' | 'head'>): GradientUnit[] {
  const blocks = Array.from({ length: range.endBlock - range.firstBlock }, (_, i) => range.endBlock - 1 - i);
  return range.head ? ['head', ...blocks] : blocks;
}

interface NamedArray {
  readonly name: string;
  readonly bytes: Float32Array;
}

/**
 * All that is needed to compute a block's weight gradients for one micro-batch, so that any stage of the training can do it. The
 * arrays move to that stage and back.
 */
export interface GradientLoan {
  /** Whether there are gradients of earlier micro-batches to add to. */
  readonly accumulate: boolean;
  /** Whether this is the step's last micro-batch: then the gradients' sums of squares are computed too. */
  readonly last: boolean;
  /** What the forward and the backward pass have kept of the micro-batch's rows. */
  readonly rows: readonly NamedArray[];
  /** The tensors of both LayerNorms. */
  readonly norms: readonly NamedArray[];
  /** The gradients of all trained tensors of the block. */
  readonly gradients: readonly (NamedArray & { readonly sumOfSquares: number | null })[];
}

/** Returns all arrays of a loan. */
export const loanArrays = ({ rows, norms, gradients }: GradientLoan): readonly Float32Array[] =>
  [...rows, ...norms, ...gradients].map(({ bytes }) => bytes);

/** A unit whose tensors are updated together: a block, by its number, or all that a stage holds outside its blocks. */
export type UpdateUnit = number | 'ends';

/** Returns a stage's units in the order in which the next forward pass needs them. */
export function updateUnits({ firstBlock, endBlock, embeds, head }: StageRange): UpdateUnit[] {
  const blocks = Array.from({ length: endBlock - firstBlock }, (_, i) => firstBlock + i);
  if (embeds) return ['ends', ...blocks];
  return head ? [...blocks, 'ends'] : blocks;
}

/** One step of the optimizer, the same for all units. */
export interface UpdateRequest {
  readonly step: AdamwStep;
  /** Whether weight decay applies to every tensor, not only to matrices. */
  readonly decayAll: boolean;
}

/** The request to a stage that updates a unit; see StageCalls. */
export interface UpdateCalls {
  /**
   * When it is not `done`, a snapshot has no room for what comes next. Read more of the snapshot, then send the same request
   * again.
   */
  trainUpdate: [{ readonly lease: string; readonly unit: UpdateUnit } & UpdateRequest, { readonly done: boolean }];
}

/** One step of a loan between two stages of a training: the other stage's number, and a name for the loan that both know. */
interface Loan {
  readonly lease: string;
  readonly with: number;
  readonly key: string;
}

/**
 * The requests of loans between stages. A loan takes the place of `trainWeightGradients` on the block's owner, and changes no
 * bits.
 */
export interface LoanCalls {
  /** Moves what a block's weight gradients need to another stage, which computes them and sends everything back. */
  trainLend: [{ readonly micro: MicroBatch; readonly block: number } & Loan, Record<string, never>];
  trainWeightGradientsFor: [Loan, Record<string, never>];
  trainTakeBack: [{ readonly block: number } & Loan, Record<string, never>];
}
