// Checkpoints are written while training goes on. One is in flight at a time, and the next one waits for it. A failed write is
// thrown at the next call, so that no step goes on as if it were saved.

import type { StoredCheckpoint } from '../../workers/store/messages.ts';

export class BackgroundCheckpoint {
  /** The newest committed checkpoint. */
  #saved: StoredCheckpoint;
  #inFlight: Promise<void> | null = null;
  #failure: { readonly error: unknown } | null = null;

  constructor(from: StoredCheckpoint) {
    this.#saved = from;
  }

  get busy(): boolean {
    return this.#inFlight !== null;
  }

  /** Throws the error of the last write, if it has failed. */
  check(): void {
    if (this.#failure !== null) throw this.#failure.error;
  }

  /** Waits for the write in flight, then runs `begin`, which resolves to the write that goes on. */
  async start(begin: () => Promise<{ readonly written: Promise<StoredCheckpoint> }>): Promise<void> {
    await this.settle();
    const { written } = await begin();
    this.#inFlight = written.then(
      (saved) => {
        this.#saved = saved;
        this.#inFlight = null;
      },
      (error: unknown) => {
        this.#failure = { error };
        this.#inFlight = null;
      },
    );
  }

  /** Waits for the write in flight; resolves to the newest committed checkpoint. */
  async settle(): Promise<StoredCheckpoint> {
    await this.#inFlight;
    this.check();
    return this.#saved;
  }

  /** Waits for the write in flight, whether it fails or not. */
  async close(): Promise<void> {
    await this.#inFlight;
  }
}
