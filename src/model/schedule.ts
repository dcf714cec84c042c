// The learning rate of every update, as a pure function of the step: a resumed job needs no scheduler state. Cosine is
// that of SGDR without restarts (Loshchilov and Hutter), as GPT-2's successors train with it.

export interface Schedule {
  /** The peak rate. */
  readonly lr: number;
  /** The rate of the last step, when the schedule decays. */
  readonly minLr: number;
  /** The rate rises linearly over this many steps. 0 starts at the peak. */
  readonly warmupSteps: number;
  readonly schedule: 'constant' | 'cosine' | 'linear';
  /** The length of the whole run. */
  readonly steps: number;
}

/**
 * The rate of update `step`, counted from 1: lr * step / warmupSteps while warming up, lr at the end of it (at step 1
 * without a warm-up), then constant or down to minLr, which the last step gets.
 */
export function learningRate(step: number, { lr, minLr, warmupSteps, schedule, steps }: Schedule): number {
  if (step < warmupSteps) return (lr * step) / warmupSteps;
  const peakStep = Math.max(1, warmupSteps);
  // A run that ends with its warm-up never decays.
  const done = steps <= peakStep ? 0 : Math.min(1, (step - peakStep) / (steps - peakStep));
  switch (schedule) {
    case 'constant':
      return lr;
    case 'cosine':
      return minLr + (lr - minLr) * 0.5 * (1 + Math.cos(Math.PI * done));
    case 'linear':
      return minLr + (lr - minLr) * (1 - done);
    default:
      return schedule satisfies never;
  }
}
