// This file computes the weight gradients of one training step. A stage computes its own, a unit at a time, when it has nothing
// more urgent. Two units are on their way to it, so that it never waits for the next one. A stage that has computed all of its
// own takes over blocks from the other stages: their arrays move there and back. The gradients of a unit are added in micro-batch
// order, so the bits do not depend on which stage computes them.

import {
  gradientUnits,
  type GradientUnit,
  type GradientWork,
  type MicroBatch,
} from '../../workers/training/messages.ts';
import type { StageCalls } from '../../workers/stage-messages.ts';
import type { PlanStage } from '../protocol/models.ts';
import { PRIORITY, type Caller } from '../threads/worker-thread.ts';

const SENT_MAX = 2;

interface Waiting extends GradientWork {
  readonly settle: (done: Promise<unknown>) => void;
}

interface Lane {
  readonly thread: Caller<StageCalls>;
  readonly units: readonly GradientUnit[];
  readonly waiting: Waiting[];
  /** The units whose gradients are being computed, here or on another stage. */
  readonly busy: Set<GradientUnit>;
  /** The number of the stage's own units that have been sent to its thread and are not done. */
  sent: number;
  /** The number of the stage's own units that the step still needs. */
  left: number;
  /** The number of other stages' units that have been sent to this stage's thread and are not done. */
  helping: number;
}

interface WeightGradientsOptions {
  readonly stages: readonly { thread: Caller<StageCalls>; plan: PlanStage }[];
  readonly microCount: number;
  /** When it aborts, work that no thread has taken up rejects. */
  readonly signal: AbortSignal;
}

export class WeightGradients {
  readonly #lease: string;
  readonly #lanes: readonly Lane[];
  readonly #signal: AbortSignal;

  constructor(lease: string, { stages, microCount, signal }: WeightGradientsOptions) {
    this.#lease = lease;
    this.#signal = signal;
    this.#lanes = stages.map(({ thread, plan }) => {
      const units = gradientUnits(plan);
      const left = microCount * units.length;
      return { thread, units, waiting: [], busy: new Set(), sent: 0, left, helping: 0 };
    });
  }

  /** Takes a micro-batch whose backward pass is through this stage. Resolves when the stage has all of its weight gradients. */
  async add(stage: number, micro: MicroBatch): Promise<void> {
    const lane = this.#lanes[stage];
    const gradients = lane.units.map(
      (unit) =>
        new Promise((resolve) => {
          lane.waiting.push({ micro, unit, settle: resolve });
        }),
    );
    this.#send();
    await Promise.all(gradients);
  }

  #send(): void {
    if (this.#signal.aborted) {
      for (const { waiting } of this.#lanes) {
        for (const { settle } of waiting.splice(0)) settle(Promise.reject(this.#signal.reason as Error));
      }
      return;
    }
    for (const lane of this.#lanes) {
      while (lane.sent < SENT_MAX) {
        const work = takeWork(lane, () => true);
        if (work === null) break;
        lane.sent += 1;
        this.#run(lane, work, async () => {
          const { micro, unit } = work;
          const request = { lease: this.#lease, micro, unit };
          await lane.thread
            .call('trainWeightGradients', request, { priority: PRIORITY.weightGradients, signal: this.#signal })
            .finally(() => (lane.sent -= 1));
        });
      }
    }
    for (const helper of this.#lanes) {
      while (helper.left === 0 && helper.helping < SENT_MAX) {
        const owner = this.#lanes.reduce((a, b) => (b.waiting.length > a.waiting.length ? b : a));
        const work = takeWork(owner, ({ unit }) => unit !== 'head');
        if (work === null) break;
        helper.helping += 1;
        this.#run(owner, work, async () => {
          await this.#help(helper, { owner, work }).finally(() => (helper.helping -= 1));
        });
      }
    }
  }

  #run(owner: Lane, { unit, settle }: Waiting, compute: () => Promise<void>): void {
    const done = compute();
    settle(done);
    const next = (): void => {
      owner.busy.delete(unit);
      owner.left -= 1;
      this.#send();
    };
    done.then(next, next);
  }

  async #help(helper: Lane, { owner, work }: { owner: Lane; work: Waiting }): Promise<void> {
    const lease = this.#lease;
    const block = work.unit as number;
    // These calls come between two units of the owner, which has nothing more urgent left.
    const signal = this.#signal;
    const urgent = { priority: PRIORITY.backward, signal };
    const { micro } = work;
    const key = `weight gradients of block ${block}, step ${micro.step}, micro-batch ${micro.index}`;
    const [there, back] = [helper, owner].map((lane) => ({ lease, key, with: this.#lanes.indexOf(lane) }));
    await owner.thread.call('trainLend', { ...there, micro, block }, urgent);
    await helper.thread.call('trainWeightGradientsFor', back, { signal });
    await owner.thread.call('trainTakeBack', { ...there, block }, urgent);
  }
}

/** Takes the first waiting work on a unit that is not busy; null when there is none. */
function takeWork({ waiting, busy }: Lane, fits: (work: Waiting) => boolean): Waiting | null {
  const at = waiting.findIndex((work) => !busy.has(work.unit) && fits(work));
  if (at < 0) return null;
  const [work] = waiting.splice(at, 1);
  busy.add(work.unit);
  return work;
}
