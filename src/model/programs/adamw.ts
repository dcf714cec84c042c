// AdamW (Loshchilov and Hutter, 2019) over a flat range of a tensor, in PyTorch's form: decay comes first, the moments are
// bias-corrected, and epsilon stands outside the root. Every operation is element-wise, so the program can be one loop.

import { GraphBuilder, type Graph } from './graph.ts';

/** The settings of one update, from which `adamwScalars` makes the program's scalar inputs. */
export interface AdamwStep {
  /** The number of this update, counted from 1. */
  readonly step: number;
  readonly lr: number;
  readonly weightDecay: number;
  /** The factor that clips the gradient. A factor of 1 leaves the gradient as it is. */
  readonly gradScale: number;
  readonly beta1: number;
  readonly beta2: number;
  readonly eps: number;
}

/** The names of the program's scalar inputs, each of shape (). */
const ADAMW_SCALARS = ['keep', 'beta1', 'gain1', 'beta2', 'gain2', 'rootScale', 'eps'] as const;

/** A smaller step size changes no weight. From here on, a step size divides a float32 without overflow. */
const STEP_SIZE_MIN = 1e-30;

/** The scalars of one update in double precision; they are rounded to float32 as they enter the program. */
export function adamwScalars(update: AdamwStep): Record<(typeof ADAMW_SCALARS)[number], number> {
  const { step, lr, weightDecay, gradScale, beta1, beta2, eps } = update;
  const stepSize = lr / (1 - beta1 ** step);
  const isStill = stepSize < STEP_SIZE_MIN;
  return {
    keep: 1 - lr * weightDecay,
    beta1,
    gain1: (1 - beta1) * gradScale,
    beta2,
    gain2: (1 - beta2) * gradScale * gradScale,
    // The step size divides both terms of the denominator, which saves one operation for each element.
    rootScale: isStill ? 0 : 1 / Math.sqrt(1 - beta2 ** step) / stepSize,
    eps: isStill ? Infinity : eps / stepSize,
  };
}

/**
 * w, g, m, v (n) and ADAMW_SCALARS -> w, m, v (n) as `wNext`, `mNext`, `vNext`.
 *   m' = beta1 m + gain1 g,   v' = beta2 v + gain2 g^2,   w' = keep w - m' / (rootScale sqrt(v') + eps)
 */
export function adamwProgram(): Graph {
  const b = new GraphBuilder('adamw');
  const [w, g, m, v] = ['w', 'g', 'm', 'v'].map((name) => b.input(name, ['n']));
  const s = Object.fromEntries(ADAMW_SCALARS.map((name) => [name, b.input(name, [])])) as Record<
    (typeof ADAMW_SCALARS)[number],
    ReturnType<typeof b.input>
  >;
  const mNext = b.node('Add', [b.node('Mul', [m, s.beta1]), b.node('Mul', [g, s.gain1])]);
  const square = b.node('Mul', [g, g]);
  const vNext = b.node('Add', [b.node('Mul', [v, s.beta2]), b.node('Mul', [square, s.gain2])]);
  const root = b.node('Add', [b.node('Mul', [b.node('Sqrt', [vNext]), s.rootScale]), s.eps]);
  b.output('wNext', b.node('Sub', [b.node('Mul', [w, s.keep]), b.node('Div', [mNext, root])]));
  b.output('mNext', mNext);
  b.output('vNext', vNext);
  return b.build();
}
