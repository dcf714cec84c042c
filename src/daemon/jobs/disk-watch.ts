// The disk watch knows the jobs that were paused because the disk is full, and says when there is room for each of them again.

import type { StoreClient } from '../threads/store-client.ts';

const POLL_MS = 1000;

export class DiskWatch {
  readonly #store: StoreClient;
  readonly #onRoom: (jobId: string) => void;
  /** The number of free bytes that each job waits for, by job id. */
  readonly #waiting = new Map<string, number>();
  #timer: NodeJS.Timeout | null = null;

  constructor(store: StoreClient, onRoom: (jobId: string) => void) {
    this.#store = store;
    this.#onRoom = onRoom;
  }

  wait(jobId: string, freeBytesNeeded: number): void {
    this.#waiting.set(jobId, freeBytesNeeded);
    this.#timer ??= setTimeout(() => void this.#poll(), POLL_MS);
  }

  /** Drops a job that has gone on or has ended. */
  forget(jobId: string): void {
    this.#waiting.delete(jobId);
  }

  close(): void {
    this.#waiting.clear();
    if (this.#timer !== null) clearTimeout(this.#timer);
  }

  async #poll(): Promise<void> {
    // A store that fails ends the daemon by itself, so its error is ignored here.
    const { freeBytes } = await this.#store.call('diskSpace', {}).catch(() => ({ freeBytes: 0 }));
    for (const [jobId, needed] of [...this.#waiting]) {
      if (needed > freeBytes) continue;
      this.#waiting.delete(jobId);
      this.#onRoom(jobId);
    }
    this.#timer = this.#waiting.size === 0 ? null : setTimeout(() => void this.#poll(), POLL_MS);
  }
}
