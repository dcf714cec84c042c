// A tensor in training with its gradient and AdamW's moments, and two functions over gradients as they lie in memory.

import { gradientSlices } from '../../model/programs/block.ts';
import type { TensorSpec } from '../../model/tensors.ts';
import type { Tensors } from '../engines/engine.ts';

/**
 * One of a stage's tensors with all that training keeps beside it. Weights and moments stay in the same memory for the whole
 * training; the gradient is empty while it is lent to another stage. The gradient and the moments of an untrained tensor are
 * empty.
 */
export interface Parameter {
  readonly spec: TensorSpec;
  readonly w: Float32Array;
  readonly m: Float32Array;
  readonly v: Float32Array;
  /** Whether the moments have been written. Before the first update they have not, unless they were loaded. */
  hasMoments: boolean;
  /** The gradient of the current step so far; its content is valid once `begun` is set. */
  g: Float32Array;
  begun: boolean;
  /** The gradient's sum of squares, where it was computed with the last micro-batch; else null. */
  sumOfSquares: number | null;
}

/** Returns views of gradients under the names of a program's inputs or outputs. */
export function gradientTensors(
  gradients: readonly { readonly name: string; readonly shape: readonly number[]; readonly g: Float32Array }[],
  suffix: 'soFar' | 'gradient',
): Tensors {
  const entries = gradients.flatMap(({ name, shape, g }) =>
    gradientSlices({ name, shape }, suffix).map(({ name: input, dims, start }) => {
      const size = dims.reduce((product, length) => product * length, 1);
      return [input, { data: g.subarray(start, start + size), dims }] as const;
    }),
  );
  return Object.fromEntries(entries);
}

/**
 * Adds in double precision: four sums side by side, in a fixed order. Each element is read once, which V8 does not do by itself.
 */
export function sumOfSquares(values: Float32Array): number {
  let [a, b, c, d] = [0, 0, 0, 0];
  const whole = values.length - (values.length % 4);
  for (let i = 0; i < whole; i += 4) {
    const p = values[i];
    const q = values[i + 1];
    const r = values[i + 2];
    const s = values[i + 3];
    a += p * p;
    b += q * q;
    c += r * r;
    d += s * s;
  }
  for (let i = whole; i < values.length; i++) a += values[i] * values[i];
  return a + b + (c + d);
}
