// The store is tidied in the background, a little in each call: old jobs are deleted, what ended jobs and deleted models leave
// behind is dropped, and the file gives its free pages back. Only one round runs at a time; a request during a round starts
// another one after it.

import type { StoreClient } from '../threads/store-client.ts';

export interface TidyingOptions {
  /** The number of ended jobs that are kept. */
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

  /** Asks for a round, because something has ended. After a deletion `thorough` gives every free page back. */
  soon({ thorough = false }: { readonly thorough?: boolean } = {}): void {
    this.#wanted = { thorough: thorough || this.#wanted?.thorough === true };
    this.#round ??= this.#run();
  }

  /** Ends the round after the call under way. May be called twice. */
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
