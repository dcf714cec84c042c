// Housekeeping of the store, in the background and in small pieces: what ended jobs and deleted models leave is dropped, and
// the file gives its free pages back. One round at a time; a request during a round asks for another one.

import type { StoreClient } from './store-client.ts';

export class Tidying {
  readonly #store: StoreClient;
  readonly #onError: (error: unknown) => void;
  #wanted: { thorough: boolean } | null = null;
  #round: Promise<void> | null = null;
  readonly #ending = new AbortController();

  constructor(store: StoreClient, onError: (error: unknown) => void) {
    this.#store = store;
    this.#onError = onError;
  }

  /** Something has ended; `thorough` after a deletion: then every free page is given back. */
  soon({ thorough = false }: { readonly thorough?: boolean } = {}): void {
    this.#wanted = { thorough: thorough || this.#wanted?.thorough === true };
    this.#round ??= this.#run();
  }

  /** Ends after the piece under way. May be called twice. */
  async close(): Promise<void> {
    this.#ending.abort();
    await this.#round;
  }

  async #run(): Promise<void> {
    try {
      for (let how = this.#next(); how !== null; how = this.#next()) {
        for (let more = true; more && !this.#ending.signal.aborted;) ({ more } = await this.#store.call('tidy', how));
      }
    } catch (error) {
      this.#onError(error);
    }
    this.#round = null;
  }

  #next(): { thorough: boolean } | null {
    const how = this.#ending.signal.aborted ? null : this.#wanted;
    this.#wanted = null;
    return how;
  }
}
