// The optimizer's part of a training step: AdamW on every stage, a part at a time, in the order in which the next forward pass
// needs them. The next step may begin meanwhile: it waits for a stage's own parts before it enters the stage. The first
// micro-batch reaches the last stage last, so that one does part of the first one's work before its own: blocks move there
// and back. Every element has its own update, so the bits do not depend on who does it.

import { blockTensors } from '../model/tensors.ts';
import type { GptConfig } from '../model/config.ts';
import { updateParts, type StageCalls, type UpdatePart, type UpdateRequest } from '../workers/messages.ts';
import type { PlanStage } from './protocol.ts';
import { PRIORITY, type Caller } from './worker-thread.ts';

/** Elements of a block from which its update is worth its way to another stage: some 2 ms of work. */
const LENT_ELEMENTS_MIN = 1 << 20;

/** Of the first stage's elements: less than half, as what is lent has a way there and back. */
const LENT_SHARE = 0.45;

export interface ModelUpdateOptions extends UpdateRequest {
  readonly config: GptConfig;
  readonly stages: readonly { thread: Caller<StageCalls>; plan: PlanStage }[];
  /** Whether the arrays have to stay where they are, because a snapshot reads them. */
  readonly held: boolean;
  /** Room for what a snapshot has to set aside. */
  readonly room: Room;
  /** What no thread has taken up when it aborts is dropped: the model is half updated then. */
  readonly signal: AbortSignal;
}

/** Says when there is room again: what was freed is counted, so that nobody waits for what has come already. */
export class Room {
  readonly #waiting = new Set<() => void>();
  #freed = 0;

  get freed(): number {
    return this.#freed;
  }

  free(): void {
    this.#freed += 1;
    for (const resolve of this.#waiting) resolve();
    this.#waiting.clear();
  }

  /** Resolves when more has been freed than `seen`. */
  async moreThan(seen: number): Promise<void> {
    if (this.#freed === seen) await new Promise<void>((resolve) => this.#waiting.add(resolve));
  }
}

export class ModelUpdate {
  readonly #lease: string;
  readonly #request: UpdateRequest;
  readonly #stages: ModelUpdateOptions['stages'];
  readonly #room: Room;
  readonly #signal: AbortSignal;
  readonly #done: readonly Promise<void>[];

  constructor(lease: string, { config, stages, held, room, signal, step, decayAll }: ModelUpdateOptions) {
    this.#lease = lease;
    this.#request = { step, decayAll };
    this.#stages = stages;
    this.#room = room;
    this.#signal = signal;
    const lent = held
      ? []
      : lentBlocks(
          config,
          stages.map(({ plan }) => plan),
        );
    // Sent before the first stage's own parts.
    const loan = lent.length > 0 ? this.#lend(lent) : Promise.resolve();
    this.#done = stages.map(({ plan }, stage) => {
      const parts = updateParts(plan).filter((part) => part === 'ends' || !lent.includes(part));
      const updates = parts.map((part) => this.#own(stage, part));
      const done = Promise.all(stage === 0 ? [loan, ...updates] : updates).then(() => undefined);
      // Whoever needs the stage next meets its failure.
      done.catch(() => undefined);
      return done;
    });
  }

  /** Resolves when a stage's tensors are updated. */
  ready(stage: number): Promise<void> {
    return this.#done[stage];
  }

  /** Resolves when all of them are. */
  async all(): Promise<void> {
    await Promise.all(this.#done);
  }

  /** Resolves when nothing of it is under way any more. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#done);
  }

  /** A stage that has no room for what a snapshot still needs goes on when more has been read. */
  async #own(stage: number, part: UpdatePart): Promise<void> {
    for (;;) {
      const seen = this.#room.freed;
      const request = { lease: this.#lease, ...this.#request, part };
      const { done } = await this.#stages[stage].thread.call('trainUpdate', request, { signal: this.#signal });
      if (done) return;
      await this.#room.moreThan(seen);
    }
  }

  async #lend(blocks: readonly number[]): Promise<void> {
    const last = this.#stages.length - 1;
    const [owner, helper] = [this.#stages[0].thread, this.#stages[last].thread];
    const urgent = { priority: PRIORITY.backward, signal: this.#signal };
    const key = `update ${this.#request.step.step}`;
    const [there, back] = [last, 0].map((stage) => ({ lease: this.#lease, key, with: stage }));
    await owner.call('trainLendUpdate', { ...there, blocks }, urgent);
    await helper.call('trainUpdateFor', { ...back, ...this.#request }, urgent);
    await owner.call('trainUpdated', there, urgent);
  }
}

/** Blocks of the first stage that are its lent share. None where there is no other stage. */
function lentBlocks(config: GptConfig, plans: readonly PlanStage[]): number[] {
  const blockSize = blockTensors(config, 0).reduce((sum, { size }) => sum + size, 0);
  if (plans.length < 2 || blockSize < LENT_ELEMENTS_MIN) return [];
  const { firstBlock, endBlock, params } = plans[0];
  const count = Math.min(Math.floor((LENT_SHARE * params) / blockSize), endBlock - firstBlock);
  return Array.from({ length: count }, (_, i) => endBlock - count + i);
}
