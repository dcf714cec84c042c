// The daemon's end of the store's thread: typed calls, bytes that move instead of being copied, errors that keep their code.
// One thread, one request at a time, in order. The thread's death is not handled here: it ends the daemon, which loses nothing.

import { Piscina } from 'piscina';
import type { StoreCalls, StoreReply, StoreRequest } from '../workers/messages.ts';
import { transferableBuffers, unwrap, type Reply } from '../workers/reply.ts';

type Pool = Piscina<StoreRequest, Reply<unknown>>;

export class StoreClient {
  readonly sqliteVersion: string;
  readonly #pool: Pool;
  #closed: Promise<void> | undefined;

  private constructor(pool: Pool, sqliteVersion: string) {
    this.#pool = pool;
    this.sqliteVersion = sqliteVersion;
  }

  /** Starts the thread and opens the data directory; throws what StoreCalls.open throws, with no thread left behind. */
  static async open({ dataDir }: { readonly dataDir: string }): Promise<StoreClient> {
    const pool = new Piscina<StoreRequest, Reply<unknown>>({
      filename: new URL('../workers/store.js', import.meta.url).href,
      minThreads: 1,
      maxThreads: 1,
      idleTimeout: Infinity,
      concurrentTasksPerWorker: 1,
    });
    try {
      const { sqliteVersion } = await request(pool, 'open', { dataDir });
      return new StoreClient(pool, sqliteVersion);
    } catch (error) {
      await pool.destroy();
      throw error;
    }
  }

  /**
   * Sends one call and waits until it is durable. Bytes in `input` are transferred: they are gone for the caller, with the
   * whole buffer that they are a view of. Chunks that share a buffer therefore belong in one call.
   */
  call<K extends keyof StoreCalls>(type: K, input: StoreCalls[K][0]): Promise<StoreReply<K>> {
    return request(this.#pool, type, input);
  }

  /** Waits for the calls before it, closes the database and ends the thread. May be called twice. */
  close(): Promise<void> {
    this.#closed ??= request(this.#pool, 'close', {}).then(() => this.#pool.destroy());
    return this.#closed;
  }
}

async function request<K extends keyof StoreCalls>(
  pool: Pool,
  type: K,
  input: StoreCalls[K][0],
): Promise<StoreReply<K>> {
  // The compiler cannot see that a type and the input of that type make a member of the union.
  const message = { ...input, type } as unknown as StoreRequest;
  const reply = await pool.run(message, { transferList: transferableBuffers(bytesOf(message)) });
  return unwrap(reply as Reply<StoreReply<K>>);
}

function bytesOf(message: StoreRequest): Uint8Array[] {
  if (message.type === 'putChunks') return message.chunks.map((chunk) => chunk.bytes);
  if (message.type === 'putBlobChunk') return [message.bytes];
  return [];
}
