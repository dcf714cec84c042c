// Checkpoints that are loaded for generation: each is loaded once, shared by the jobs that use it, and kept after its last
// use until another one needs the room.

import type { GptConfig } from '../model/config.ts';
import type { TokenizerSpec } from '../model/tokenizer.ts';
import { assert } from '../model/errors.ts';
import type { StoredCheckpoint, StoredModel } from '../workers/messages.ts';
import { admit, servingBytes } from './memory.ts';
import type { StageCaller, StageThread } from './pipeline.ts';
import { planStages } from './plan.ts';
import type { PlanStage } from './protocol.ts';

/** Loaded models that nobody uses and that are kept for the next request. */
const IDLE_MODELS_MAX = 2;

export interface ServedModel {
  readonly lease: string;
  readonly config: GptConfig;
  readonly stages: readonly { readonly thread: StageCaller; readonly plan: PlanStage }[];
}

interface Entry {
  readonly model: ServedModel;
  readonly loaded: Promise<void>;
  users: number;
}

export class ServedModels {
  readonly #threads: readonly StageThread[];
  readonly #budgetBytes: number;
  /** By lease, least recently used first. */
  readonly #entries = new Map<string, Entry>();

  constructor(threads: readonly StageThread[], budgetBytes: number) {
    this.#threads = threads;
    this.#budgetBytes = budgetBytes;
  }

  /** Loads the checkpoint unless it is there; `release` it afterwards. Throws `out_of_memory`, `not_found` or `corrupt`. */
  async acquire({ config, tokenizer }: StoredModel, checkpoint: StoredCheckpoint): Promise<ServedModel> {
    const complete = completeTokenizer(tokenizer);
    const lease = `serve-${checkpoint.checkpointId}-${checkpoint.digest.slice(0, 8)}-${complete?.type ?? 'ids'}`;
    const known = this.#entries.get(lease);
    const entry = known ?? this.#load(lease, { config, tokenizer: complete, checkpoint });
    entry.users += 1;
    this.#entries.delete(lease);
    this.#entries.set(lease, entry);
    try {
      await entry.loaded;
    } catch (error) {
      entry.users -= 1;
      if (this.#entries.get(lease) === entry) this.#entries.delete(lease);
      throw error;
    }
    return entry.model;
  }

  release({ lease }: ServedModel): void {
    const entry = this.#entries.get(lease);
    // It may have been forgotten meanwhile.
    if (entry === undefined) return;
    assert(entry.users > 0, `${lease} is not in use`);
    entry.users -= 1;
    this.#evict();
  }

  /** After a thread's death: its part of every model is gone, so the rest is dropped too and loaded again when asked for. */
  forget(): void {
    for (const [lease, { model }] of [...this.#entries]) {
      this.#entries.delete(lease);
      void this.#unload(model.stages, lease);
    }
  }

  #load(
    lease: string,
    {
      config,
      tokenizer,
      checkpoint,
    }: { config: GptConfig; tokenizer: TokenizerSpec | null; checkpoint: StoredCheckpoint },
  ): Entry {
    admit(servingBytes(config), { budgetBytes: this.#budgetBytes, what: `Generating with ${checkpoint.model}` });
    const stages = planStages(config, this.#threads.length).map((plan) => ({
      thread: this.#threads[plan.worker].bound(),
      plan,
    }));
    const { checkpointId } = checkpoint;
    const load = async (): Promise<void> => {
      const loads = stages.map(({ thread, plan }) =>
        thread.call('serveLoad', { lease, checkpointId, config, stage: plan, tokenizer }),
      );
      const failed = (await Promise.allSettled(loads)).find((result) => result.status === 'rejected');
      if (failed === undefined) return;
      await this.#unload(stages, lease);
      throw failed.reason;
    };
    return { model: { lease, config, stages }, loaded: load(), users: 0 };
  }

  #evict(): void {
    const idle = [...this.#entries].filter(([, { users }]) => users === 0);
    for (const [lease, { model }] of idle.slice(0, Math.max(0, idle.length - IDLE_MODELS_MAX))) {
      this.#entries.delete(lease);
      void this.#unload(model.stages, lease);
    }
  }

  async #unload(stages: ServedModel['stages'], lease: string): Promise<void> {
    await Promise.allSettled(stages.map(({ thread }) => thread.call('unload', { lease })));
  }
}

/** A char tokenizer whose alphabet is not known yet cannot decode. */
function completeTokenizer(tokenizer: unknown): TokenizerSpec | null {
  const spec = tokenizer as TokenizerSpec | { type: 'char'; alphabet: null } | null;
  return spec === null || (spec.type === 'char' && spec.alphabet === null) ? null : spec;
}
