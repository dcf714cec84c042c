// The weight passes of one training step. A stage does its own, a part at a time, when it has nothing more urgent; so that it
// never waits for the next one, two of them are on their way to it. A stage whose part of the step is done takes passes of
// blocks over from the others: their arrays move there and back. Passes of a part run in micro-batch order, so the bits do
// not depend on who does them.

import { weightParts, type MicroBatch, type WeightPart, type WeightsPass } from '../../workers/training/messages.ts';
import type { StageCalls } from '../../workers/stage-messages.ts';
import type { PlanStage } from '../protocol/models.ts';
import { PRIORITY, type Caller } from '../threads/worker-thread.ts';

const SENT_MAX = 2;

interface Pass extends WeightsPass {
  readonly settle: (done: Promise<unknown>) => void;
}

interface Lane {
  readonly thread: Caller<StageCalls>;
  readonly parts: readonly WeightPart[];
  readonly waiting: Pass[];
  /** Parts of which a pass is under way, here or elsewhere. */
  readonly busy: Set<WeightPart>;
  /** Own passes that have been sent to the thread. */
  sent: number;
  /** Passes of this stage that the step still needs. */
  left: number;
  /** Passes of other stages that are on their way to the thread. */
  helping: number;
}

interface WeightPassesOptions {
  readonly stages: readonly { thread: Caller<StageCalls>; plan: PlanStage }[];
  readonly microCount: number;
  /** Passes that no thread has taken up when it aborts reject. */
  readonly signal: AbortSignal;
}

export class WeightPasses {
  readonly #lease: string;
  readonly #lanes: readonly Lane[];
  readonly #signal: AbortSignal;

  constructor(lease: string, { stages, microCount, signal }: WeightPassesOptions) {
    this.#lease = lease;
    this.#signal = signal;
    this.#lanes = stages.map(({ thread, plan }) => {
      const parts = weightParts(plan);
      const left = microCount * parts.length;
      return { thread, parts, waiting: [], busy: new Set(), sent: 0, left, helping: 0 };
    });
  }

  /** The micro-batch is backward through this stage; resolves when the stage has all of its weight gradients. */
  async add(stage: number, micro: MicroBatch): Promise<void> {
    const lane = this.#lanes[stage];
    const passes = lane.parts.map(
      (part) =>
        new Promise((resolve) => {
          lane.waiting.push({ micro, part, settle: resolve });
        }),
    );
    this.#send();
    await Promise.all(passes);
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
        const pass = takePass(lane, () => true);
        if (pass === null) break;
        lane.sent += 1;
        this.#run(lane, pass, async () => {
          const { micro, part } = pass;
          const request = { lease: this.#lease, micro, part };
          await lane.thread
            .call('trainWeights', request, { priority: PRIORITY.weights, signal: this.#signal })
            .finally(() => (lane.sent -= 1));
        });
      }
    }
    for (const helper of this.#lanes) {
      while (helper.left === 0 && helper.helping < SENT_MAX) {
        const owner = this.#lanes.reduce((a, b) => (b.waiting.length > a.waiting.length ? b : a));
        const pass = takePass(owner, ({ part }) => part !== 'head');
        if (pass === null) break;
        helper.helping += 1;
        this.#run(owner, pass, async () => {
          await this.#help(helper, { owner, pass }).finally(() => (helper.helping -= 1));
        });
      }
    }
  }

  #run(owner: Lane, pass: Pass, work: () => Promise<void>): void {
    const done = work();
    pass.settle(done);
    const next = (): void => {
      owner.busy.delete(pass.part);
      owner.left -= 1;
      this.#send();
    };
    done.then(next, next);
  }

  async #help(helper: Lane, { owner, pass }: { owner: Lane; pass: Pass }): Promise<void> {
    const lease = this.#lease;
    const block = pass.part as number;
    // Between two passes of the owner's: it has nothing more urgent left.
    const signal = this.#signal;
    const urgent = { priority: PRIORITY.backward, signal };
    const { micro } = pass;
    const key = `weights of block ${block}, step ${micro.step}, micro-batch ${micro.index}`;
    const [there, back] = [helper, owner].map((lane) => ({ lease, key, with: this.#lanes.indexOf(lane) }));
    await owner.thread.call('trainLend', { ...there, micro, block }, urgent);
    await helper.thread.call('trainWeightsFor', back, { signal });
    await owner.thread.call('trainTakeBack', { ...there, block }, urgent);
  }
}

/** The first waiting pass of a part that is not under way. */
function takePass({ waiting, busy }: Lane, fits: (pass: Pass) => boolean): Pass | null {
  const at = waiting.findIndex((pass) => !busy.has(pass.part) && fits(pass));
  if (at < 0) return null;
  const [pass] = waiting.splice(at, 1);
  busy.add(pass.part);
  return pass;
}
