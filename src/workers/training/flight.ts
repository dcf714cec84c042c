// What a stage keeps of a micro-batch between its forward pass and its weight gradients.

import type { BLOCK_SAVED } from '../../model/programs/block.ts';
import type { HEAD_SAVED } from '../../model/programs/head.ts';

interface BlockActivations {
  readonly x: Float32Array;
  readonly saved: Record<(typeof BLOCK_SAVED)[number], Float32Array>;
  readonly masks: Record<string, Uint8Array>;
  /** After the backward pass: dy and BLOCK_ROW_GRADIENTS. */
  gradients: Record<string, Float32Array> | null;
}

/** What the head keeps of a micro-batch: its input and HEAD_SAVED. */
export interface HeadActivations {
  readonly x: Float32Array;
  readonly saved: Record<(typeof HEAD_SAVED)[number], Float32Array>;
}

export interface Flight {
  /** The number of units whose weight gradients are still to come. */
  unitsLeft: number;
  readonly blocks: BlockActivations[];
  head: HeadActivations | null;
  /** The gradient of the last block's output, which the head computes; null on a stage without the head. */
  dx: Float32Array | null;
}
