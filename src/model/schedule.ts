// The learning rate of every update, as a pure function of the step: a resumed job needs no scheduler state. Cosine is
// that of SGDR without restarts (Loshchilov and Hutter), as GPT-2's successors train with it; wsd is warm-up, stable, decay
// (Hu et al., "MiniCPM"), with a linear decay.

export const SCHEDULES = ['constant', 'linear', 'cosine', 'wsd'] as const;
export type ScheduleName = (typeof SCHEDULES)[number];

/** Part of a `wsd` run that decays by default. */
const DECAY_FRACTION = 0.2;

export interface Schedule {
  /** The peak rate. */
  readonly lr: number;
  /** The rate of the last step, when the schedule decays. */
  readonly minLr: number;
  /** The rate rises linearly over this many steps. 0 starts at the peak. */
  readonly warmupSteps: number;
  readonly schedule: ScheduleName;
  /** Steps of the decay that ends a `wsd` run; by default a fifth of the run. The others ignore it. */
  readonly decaySteps?: number | undefined;
  /** The length of the whole run. */
  readonly steps: number;
}

/**
 * The rate of update `step`, counted from 1: lr * step / warmupSteps while warming up, lr at the end of it (at step 1
 * without a warm-up), then constant or down to minLr, which the last step gets.
 */
export function learningRate(step: number, settings: Schedule): number {
  const { lr, minLr, warmupSteps, schedule, steps } = settings;
  if (step < warmupSteps) return (lr * step) / warmupSteps;
  const peakStep = Math.max(1, warmupSteps);
  const decayStart = schedule === 'wsd' ? Math.max(peakStep, steps - decayStepsOf(settings)) : peakStep;
  // A run that ends with its warm-up never decays.
  const done = steps <= decayStart ? 0 : Math.min(1, Math.max(0, (step - decayStart) / (steps - decayStart)));
  switch (schedule) {
    case 'constant':
      return lr;
    case 'cosine':
      return minLr + (lr - minLr) * 0.5 * (1 + Math.cos(Math.PI * done));
    case 'linear':
    case 'wsd':
      return minLr + (lr - minLr) * (1 - done);
    default:
      return schedule satisfies never;
  }
}

/** Steps over which a `wsd` run of `steps` decays. */
export const decayStepsOf = ({ steps, decaySteps }: Pick<Schedule, 'steps' | 'decaySteps'>): number =>
  decaySteps ?? Math.ceil(steps * DECAY_FRACTION);
