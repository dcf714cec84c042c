// The learning rate of every update, as a pure function of the step, so that a resumed job needs no scheduler state. `cosine` is
// the schedule of SGDR without restarts (Loshchilov and Hutter), with which GPT-2's successors are trained. `wsd` is warm-up,
// stable, decay (Hu et al., "MiniCPM"), with a linear decay.

export const SCHEDULES = ['constant', 'linear', 'cosine', 'wsd'] as const;
export type ScheduleName = (typeof SCHEDULES)[number];

/** The fraction of a `wsd` run that decays by default. */
const DECAY_FRACTION = 0.2;

export interface Schedule {
  /** The peak rate. */
  readonly lr: number;
  /** The rate of the last step, when the schedule decays. */
  readonly minLr: number;
  /** The rate rises linearly over this many steps. With 0 steps the run starts at the peak. */
  readonly warmupSteps: number;
  readonly schedule: ScheduleName;
  /** The steps of the decay that ends a `wsd` run, by default a fifth of the run. The other schedules ignore this field. */
  readonly decaySteps?: number | undefined;
  /** The length of the whole run. */
  readonly steps: number;
}

/**
 * Returns the rate of update `step`, counted from 1. It is lr * step / warmupSteps during the warm-up and lr at its end (at step
 * 1 without a warm-up). Then it stays constant, or falls to minLr at the last step.
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

/** Returns the number of steps over which a `wsd` run of `steps` decays. */
export const decayStepsOf = ({ steps, decaySteps }: Pick<Schedule, 'steps' | 'decaySteps'>): number =>
  decaySteps ?? Math.ceil(steps * DECAY_FRACTION);
