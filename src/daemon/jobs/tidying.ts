// Housekeeping of the store, in the background and in small pieces: old jobs go, what ended jobs and deleted models leave is
// dropped, and the file gives its free pages back. One round at a time; a request during a round asks for another one.

import type { StoreClient } from '../threads/store-client.ts';

export interface TidyingOptions {
  /** Ended jobs that stay. */
  readonly keepJobs: number;
  readonly onError: (error: unknown) => void;
}

export class Tidying {
  readonly #store: StoreClient;
  readonly #options: TidyingOptions;
  #wanted: { thorough: boolean } | null = null;
  #round: Promise<void> | null = null;
  readonly #ending = new AbortController();

  constructor(store: StoreClient, options: TidyingOptions) {
    this.#store = store;
    this.#options = options;
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
    const { keepJobs, onError } = this.#options;
    try {
      for (let how = this.#next(); how !== null; how = this.#next()) {
        for (let more = true; more && !this.#ending.signal.aborted;) {
          ({ more } = await this.#store.call('tidy', { ...how, keepJobs }));
        }
      }
    } catch (error) {
      onError(error);
    }
    this.#round = null;
  }

  #next(): { thorough: boolean } | null {
    const how = this.#ending.signal.aborted ? null : this.#wanted;
    this.#wanted = null;
    return how;
  }
}
