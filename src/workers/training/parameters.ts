// A tensor in training with its gradient and AdamW's moments, and what is done with gradients as they lie in memory.

import { gradientSlices } from '../../model/programs/block.ts';
import type { TensorSpec } from '../../model/tensors.ts';
import type { Tensors } from '../engines/engine.ts';

/**
 * One of a stage's tensors with all that training keeps beside it. Memory is the same for the whole training; the gradient is
 * empty while it is lent to another stage. A tensor that is not trained has neither gradient nor moments: they are empty.
 */
export interface Parameter {
  readonly spec: TensorSpec;
  readonly w: Float32Array;
  readonly m: Float32Array;
  readonly v: Float32Array;
  /** Whether anything has been written to the moments: before the first update nothing has, unless they were loaded. */
  hasMoments: boolean;
  /** Gradient of the current step so far; it means something once `begun`. */
  g: Float32Array;
  begun: boolean;
  /** Of the gradient, once it is complete and somebody had the time. */
  sumOfSquares: number | null;
}

/** Gradients in place, under the names of a program's inputs or outputs. */
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

/** In double precision, four sums side by side in a fixed order. Each element is read once: the compiler does not see that. */
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
