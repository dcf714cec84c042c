// The daemon's end of the store's thread: typed calls, bytes that move instead of being copied, errors that keep their code.
// Requests run one at a time, in order. The thread's death ends the daemon, which loses nothing.

import { GptdError } from '../../model/errors.ts';
import { STORE_THREAD, type StoreCalls, type StoreReply } from '../../workers/store/messages.ts';
import { WorkerThread } from './worker-thread.ts';

export class StoreClient {
  readonly sqliteVersion: string;
  readonly #thread: WorkerThread<StoreCalls>;
  #closed: Promise<void> | undefined;

  private constructor(thread: WorkerThread<StoreCalls>, sqliteVersion: string) {
    this.#thread = thread;
    this.sqliteVersion = sqliteVersion;
  }

  /** Starts the thread and opens the data directory; throws what StoreCalls.open throws, with no thread left behind. */
  static async open({ dataDir }: { readonly dataDir: string }): Promise<StoreClient> {
    const thread = new WorkerThread(STORE_THREAD);
    try {
      const { sqliteVersion } = await thread.call('open', { dataDir });
      return new StoreClient(thread, sqliteVersion);
    } catch (error) {
      await thread.close();
      throw error;
    }
  }

  /**
   * Sends one call and waits until it is durable. Bytes in `input` move: they are gone for the caller, with the
   * whole buffer that they are a view of. Chunks that share a buffer therefore belong in one call. Bytes in shared memory stay,
   * and must not change before the call is answered. Rejects with `shutting_down` once it is being closed.
   */
  async call<K extends keyof StoreCalls>(type: K, input: StoreCalls[K][0]): Promise<StoreReply<K>> {
    // After the last call the thread is gone.
    if (this.#closed !== undefined)
      throw new GptdError('shutting_down', 'The store is closed: the daemon is shutting down.');
    return await this.#thread.call(type, input);
  }

  /** The store's thread must not die: whoever hears of it ends the daemon. */
  onDeath(listener: (error: unknown) => void): void {
    this.#thread.onDeath(listener);
  }

  /** Waits for the calls before it, closes the database and ends the thread, also a dead one. May be called twice. */
  close(): Promise<void> {
    this.#closed ??= this.#end();
    return this.#closed;
  }

  async #end(): Promise<void> {
    try {
      await this.#thread.call('close', {});
    } finally {
      await this.#thread.close();
    }
  }
}
