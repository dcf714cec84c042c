// This holds the checkpoints that are loaded for generation. Each is loaded once, shared by the jobs that use it, and kept after
// its last use until another one needs the room. Together they stay within a budget of memory.

import type { GptConfig } from '../../model/config.ts';
import { assert, GptdError } from '../../model/errors.ts';
import type { StoredCheckpoint, StoredModel, TensorChunk } from '../../workers/store/messages.ts';
import type { Quantization } from '../../model/programs/quantize.ts';
import { SERVING_THREADS } from '../../model/programs/serving.ts';
import { Batcher } from './batcher.ts';
import type { LoadedModel } from './rows.ts';
import { admit, cachedTokensMax, servingBytes, servingPeakBytes } from '../threads/memory.ts';
import type { StageThread } from '../threads/stages.ts';
import { planStages } from '../threads/plan.ts';
import type { StoreClient } from '../threads/store-client.ts';

/** The number of sequences of one model that run at once. */
const SEQUENCES_MAX = 64;

export interface ServedModel extends LoadedModel {
  readonly batcher: Batcher;
}

export interface ServeRequest {
  readonly model: StoredModel;
  readonly checkpoint: StoredCheckpoint;
  readonly quantization: Quantization | null;
}

interface Entry {
  /** Names what is loaded: entries with the same key are the same weights. */
  readonly key: string;
  readonly model: ServedModel;
  readonly loaded: Promise<void>;
  /** The bytes that the entry takes, which are more while it loads. */
  bytes: number;
  /** The model's name in the store. */
  readonly name: string;
  users: number;
  /** Whether the entry takes no new users, and is removed with its last one. */
  isRetired: boolean;
}

export interface ServedModelsOptions {
  readonly store: StoreClient;
  /** The bytes that the loaded models may take together. */
  readonly budgetBytes: number;
  /** Is called when quantized weights cannot be stored. */
  readonly onError: (error: unknown) => void;
}

export class ServedModels {
  readonly #threads: readonly StageThread[];
  readonly #store: StoreClient;
  readonly #budgetBytes: number;
  readonly #onError: (error: unknown) => void;
  /** Holds the entries by lease, the least recently used first. */
  readonly #entries = new Map<string, Entry>();
  #loadCount = 0;
  #roomWaiters: (() => void)[] = [];

  constructor(threads: readonly StageThread[], { store, budgetBytes, onError }: ServedModelsOptions) {
    this.#threads = threads;
    this.#store = store;
    this.#budgetBytes = budgetBytes;
    this.#onError = onError;
  }

  /**
   * Loads the checkpoint unless it is loaded already. The caller must `release` it afterwards. Waits while models in use leave no
   * room for it. Throws `out_of_memory`, `not_found` or `corrupt`.
   */
  async acquire(request: ServeRequest): Promise<ServedModel> {
    const { config } = request.model;
    const { checkpointId, digest, model } = request.checkpoint;
    const key = `serve-${checkpointId}-${digest.slice(0, 8)}-${request.quantization ?? 'f32'}`;
    const find = (): Entry | undefined =>
      [...this.#entries.values()].find((entry) => entry.key === key && !entry.isRetired);
    const bytes = servingPeakBytes(config, request.quantization);
    admit({ bytes, what: `Generating with ${model}` }, this.#budgetBytes);
    let entry = find();
    while (entry === undefined && !this.#makeRoom(bytes)) {
      await new Promise<void>((resolve) => this.#roomWaiters.push(resolve));
      entry = find();
    }
    entry ??= this.#load(key, { config, request, bytes });
    entry.users += 1;
    const { lease } = entry.model;
    this.#entries.delete(lease);
    this.#entries.set(lease, entry);
    try {
      await entry.loaded;
    } catch (error) {
      entry.users -= 1;
      this.#entries.delete(lease);
      this.#wake();
      throw error;
    }
    return entry.model;
  }

  release({ lease }: ServedModel): void {
    const entry = this.#entries.get(lease);
    assert(entry !== undefined && entry.users > 0, `${lease} is not in use`);
    entry.users -= 1;
    if (entry.isRetired) this.#retire(entry);
    this.#wake();
  }

  /** Retires what is loaded of a model that was deleted: it goes when nothing uses it. */
  drop(name: string): void {
    this.#retireAll((entry) => entry.name === name);
  }

  /** An estimate of the bytes that the loaded models hold. */
  get bytes(): number {
    return [...this.#entries.values()].reduce((sum, { bytes }) => sum + bytes, 0);
  }

  /**
   * Retires the models with a stage on a thread that has died: they are loaded again when asked for. Models on other threads are
   * not disturbed.
   */
  forget(thread: StageThread): void {
    const dead = this.#threads.indexOf(thread);
    this.#retireAll(({ model }) => model.stages.some(({ plan }) => plan.worker === dead));
  }

  #load(
    key: string,
    {
      config,
      request: { checkpoint, quantization },
      bytes,
    }: { config: GptConfig; request: ServeRequest; bytes: number },
  ): Entry {
    // A stage computes on several threads by itself, and the stages of one step work in turn: more of them only add hops.
    const stageCount = Math.ceil(this.#threads.length / SERVING_THREADS);
    const first = this.#loadCount++;
    // Each load has a lease of its own: what is left of an earlier load is still unloaded under the earlier lease.
    const lease = `${key}-${first}`;
    const stages = planStages(config, stageCount).map((plan) => {
      // The next model begins on the next thread.
      const worker = (first + plan.worker) % this.#threads.length;
      return { thread: this.#threads[worker].bound(), plan: { ...plan, worker } };
    });
    const { checkpointId } = checkpoint;
    const load = async (): Promise<void> => {
      const loads = stages.map(({ thread, plan }) =>
        thread.call('serveLoad', { lease, checkpointId, config, stage: plan, quantization }),
      );
      const settled = await Promise.allSettled(loads);
      const failed = settled.find((result) => result.status === 'rejected');
      if (failed !== undefined) {
        await this.#unload(stages, lease);
        throw failed.reason;
      }
      const made = settled.flatMap((result) => (result.status === 'fulfilled' ? result.value.made : []));
      // No request waits until this is stored.
      void this.#keep(checkpointId, made).then(() => {
        entry.bytes = servingBytes(config, quantization);
        this.#wake();
      });
    };
    const limits = { sequencesMax: SEQUENCES_MAX, cachedTokensMax: cachedTokensMax(config, this.#budgetBytes) };
    const model = { lease, config, stages };
    const entry: Entry = {
      key,
      model: { ...model, batcher: new Batcher(model, limits) },
      loaded: load(),
      bytes,
      name: checkpoint.model,
      users: 0,
      isRetired: false,
    };
    return entry;
  }

  /** Stores the quantized weights that were made from a checkpoint. What cannot be stored is made again at the next load. */
  async #keep(checkpointId: number, made: readonly TensorChunk<Quantization>[]): Promise<void> {
    try {
      for (const chunk of made) await this.#store.call('putMade', { checkpointId, chunks: [chunk] });
    } catch (error) {
      if (!(error instanceof GptdError && error.code === 'shutting_down')) this.#onError(error);
    }
  }

  /** Unloads models that no job uses, the least recently used first, until `bytes` more fit. Returns whether they fit. */
  #makeRoom(bytes: number): boolean {
    const isRoom = (): boolean => this.bytes + bytes <= this.#budgetBytes;
    for (const entry of [...this.#entries.values()]) {
      if (isRoom()) break;
      if (entry.users === 0) this.#remove(entry);
    }
    return isRoom();
  }

  #retireAll(isMeant: (entry: Entry) => boolean): void {
    for (const entry of [...this.#entries.values()].filter(isMeant)) this.#retire(entry);
    this.#wake();
  }

  #retire(entry: Entry): void {
    entry.isRetired = true;
    if (entry.users === 0) this.#remove(entry);
  }

  #remove({ model: { lease, stages } }: Entry): void {
    this.#entries.delete(lease);
    void this.#unload(stages, lease);
  }

  #wake(): void {
    for (const resolve of this.#roomWaiters.splice(0)) resolve();
  }

  async #unload(stages: ServedModel['stages'], lease: string): Promise<void> {
    await Promise.allSettled(stages.map(({ thread }) => thread.call('unload', { lease })));
  }
}
