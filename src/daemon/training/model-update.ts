// A training step ends with AdamW on every stage. The units are updated one at a time, in the order in which the next forward
// pass needs them. The next step may begin meanwhile: it waits for a stage's own units before it enters the stage.

import { updateUnits, type UpdateUnit, type UpdateRequest } from '../../workers/training/messages.ts';
import type { StageCalls } from '../../workers/stage-messages.ts';
import type { PlanStage } from '../protocol/models.ts';
import type { Caller } from '../threads/worker-thread.ts';

export interface ModelUpdateOptions extends UpdateRequest {
  readonly stages: readonly { thread: Caller<StageCalls>; plan: PlanStage }[];
  /** Says when there is room for what a snapshot has to set aside. */
  readonly room: Room;
  /** When it aborts, updates that no thread has taken up are dropped: the model is half updated then. */
  readonly signal: AbortSignal;
}

/** Says when there is room again. It counts how often room was freed, so that no caller waits for room that has come already. */
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

  /** Resolves when room has been freed more often than `seen`. */
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

  constructor(lease: string, { stages, room, signal, step, decayAll }: ModelUpdateOptions) {
    this.#lease = lease;
    this.#request = { step, decayAll };
    this.#stages = stages;
    this.#room = room;
    this.#signal = signal;
    this.#done = stages.map(({ plan }, stage) => {
      const done = Promise.all(updateUnits(plan).map((unit) => this.#updateUnit(stage, unit))).then(() => undefined);
      // The next caller that waits for the stage gets its failure.
      done.catch(() => undefined);
      return done;
    });
  }

  /** Resolves when a stage's tensors are updated. */
  ready(stage: number): Promise<void> {
    return this.#done[stage];
  }

  /** Resolves when the tensors of all stages are updated. */
  async all(): Promise<void> {
    await Promise.all(this.#done);
  }

  /** Resolves when no update is under way on any stage, whether they failed or not. */
  async settled(): Promise<void> {
    await Promise.allSettled(this.#done);
  }

  /**
   * Updates one unit. A stage that has no room for what a snapshot still needs goes on when more of the snapshot has been read.
   */
  async #updateUnit(stage: number, unit: UpdateUnit): Promise<void> {
    for (;;) {
      const seen = this.#room.freed;
      const request = { lease: this.#lease, ...this.#request, unit };
      const { done } = await this.#stages[stage].thread.call('trainUpdate', request, { signal: this.#signal });
      if (done) return;
      await this.#room.moreThan(seen);
    }
  }
}
