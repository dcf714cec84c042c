// A hash chain over the steps of a training run. Two people who compare its last link have compared every loss and every
// gradient norm, to the bit. Link n is SHA-256 over link n - 1 (32 bytes), the step (uint64), the loss and the gradient norm
// (float64), all little-endian. The first step of a fresh model follows 32 zero bytes.

import { createHash } from 'node:crypto';

/** The link that the first step of a fresh model follows: 64 hexadecimal digits, like every link. */
export const CHAIN_START = '0'.repeat(64);

export interface ChainStep {
  readonly step: number;
  readonly loss: number;
  readonly gradNorm: number;
}

const fields = new DataView(new ArrayBuffer(24));

/** Returns the link after `previous`. */
export function nextLink(previous: string, { step, loss, gradNorm }: ChainStep): string {
  fields.setBigUint64(0, BigInt(step), true);
  fields.setFloat64(8, loss, true);
  fields.setFloat64(16, gradNorm, true);
  return createHash('sha256').update(previous, 'hex').update(fields).digest('hex');
}
