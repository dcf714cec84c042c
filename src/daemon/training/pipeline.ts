// A pipeline is one model in training, spread over the stages. A step sends its micro-batches forward through the stages and
// their gradients back; a stage computes weight gradients when it has nothing more urgent. Each stage takes requests of a kind in
// micro-batch order, so every sum has one order and its bits do not depend on timing or on the number of stages.

import { MessageChannel, type MessagePort } from 'node:worker_threads';
import type { AdamwStep } from '../../model/programs/adamw.ts';
import type { GptConfig } from '../../model/config.ts';
import { assert, GptdError } from '../../model/errors.ts';
import { tensorTable } from '../../model/tensors.ts';
import type { MicroBatch, TrainSetup } from '../../workers/training/messages.ts';
import type { TensorChunk } from '../../workers/store/messages.ts';
import { FLIGHTS_PER_STAGE, SNAPSHOT_BYTES_MAX } from '../threads/memory.ts';
import { ModelUpdate, Room } from './model-update.ts';
import type { PlanStage } from '../protocol/models.ts';
import { chunksIn, groupElements, GroupBuffers, readGroups, snapshotGroups } from './snapshot.ts';
import { WeightGradients } from './weight-gradients.ts';
import type { StageCaller, StageThread } from '../threads/stages.ts';
import { PRIORITY, WorkerDied } from '../threads/worker-thread.ts';

export interface StepResult {
  /** The mean over the step's tokens. */
  readonly loss: number;
  /** The norm of the whole gradient before clipping. */
  readonly gradNorm: number;
}

export interface StepRequest {
  /** The number of the update within the model's life, which keys dropout. */
  readonly step: number;
  /** The positions in the dataset at which the batch's windows begin. */
  readonly starts: readonly number[];
  /** AdamW's settings without the clipping factor. */
  readonly adamw: Omit<AdamwStep, 'gradScale'>;
  /** The largest gradient norm; 0 turns clipping off. */
  readonly gradClip: number;
  readonly decayAll: boolean;
}

/** Holds the model's state between two steps, to be read while later steps go on. */
export interface ModelSnapshot {
  /** Yields every chunk of the weights and of both moments once, in groups. */
  readonly chunks: AsyncIterable<readonly TensorChunk[]>;
  /** Takes back a group that nothing uses any more. Later groups are read into its memory, and wait for it. */
  giveBack(group: readonly TensorChunk[]): void;
  /**
   * Must be called whether or not the chunks were read: until then the stages set aside what they overwrite. May be called twice.
   */
  end(): Promise<void>;
}

/** The number of rows of a decoded sequence is a multiple of this, so that few programs are compiled. */
const DECODE_ROWS = 64;

export interface DecodeOptions {
  readonly maxTokens: number;
  /** A temperature of 0 is greedy. */
  readonly temperature: number;
  readonly seed: number;
  readonly signal: AbortSignal;
}

/** A loss or a gradient norm is NaN or infinite. */
export class NotFinite extends GptdError {
  constructor(message: string) {
    super('engine_failed', message);
    this.name = 'NotFinite';
  }
}

export class Pipeline {
  readonly #config: GptConfig;
  /** The names of the tensors that have a gradient, in table order. */
  readonly #trained: readonly string[];
  readonly #lease: string;
  readonly #stages: readonly { readonly thread: StageCaller; readonly plan: PlanStage }[];
  readonly #microBatchSize: number;
  readonly #contextLength: number;
  /** Says when the stages have room for what an update overwrites and a snapshot needs. */
  readonly #room = new Room();
  /** The update of the last step, which may still be under way. */
  #update: ModelUpdate | null = null;
  /** The memory that snapshots are read into. It is made for the first one. */
  #buffers: GroupBuffers | null = null;

  private constructor(
    threads: readonly StageThread[],
    { lease, plan, setup }: { lease: string; plan: readonly PlanStage[]; setup: Omit<TrainSetup, 'stage'> },
  ) {
    this.#config = setup.config;
    this.#trained = tensorTable(setup.config).flatMap(({ name, trained }) => (trained ? [name] : []));
    this.#lease = lease;
    this.#stages = plan.map((stage) => ({ thread: threads[stage.worker].bound(), plan: stage }));
    this.#microBatchSize = setup.microBatchSize;
    this.#contextLength = setup.contextLength;
  }

  /** Loads a checkpoint into the stages. */
  static async open(
    threads: readonly StageThread[],
    options: {
      readonly lease: string;
      readonly plan: readonly PlanStage[];
      readonly setup: Omit<TrainSetup, 'stage'>;
      readonly checkpointId: number;
    },
  ): Promise<Pipeline> {
    const pipeline = new Pipeline(threads, options);
    const { lease, checkpointId, setup } = options;
    try {
      const ports = stagePorts(options.plan.length);
      await pipeline.#all(({ thread, plan }, stage) =>
        thread.call('trainLoad', { lease, checkpointId, setup: { ...setup, stage: plan }, ports: ports[stage] }),
      );
    } catch (error) {
      const cause = await pipeline.#causeOf(error);
      await pipeline.close();
      throw cause;
    }
    return pipeline;
  }

  /**
   * Makes one optimizer update. Nothing changes when it throws: `cancelled` on abort, `NotFinite` for a loss or a gradient norm
   * that is not finite. The weights may still be changing when it resolves. The next call waits for them, and rejects if their
   * update fails.
   */
  async step(request: StepRequest, signal: AbortSignal): Promise<StepResult> {
    const micros = this.#microBatches(request.starts, request.step);
    const gradients = new WeightGradients(this.#lease, { stages: this.#stages, microCount: micros.length, signal });
    const lossSums = await this.#inFlight(micros, (micro) => this.#trainMicroBatch(micro, { gradients, signal }));
    const finished = await this.#all(({ thread }) => thread.call('trainFinish', { lease: this.#lease }, { signal }));
    const squares = new Map(
      finished.flatMap((stage) => stage.squares.map((square) => [square.tensor, square.sumOfSquares])),
    );
    const total = this.#trained.reduce((sum, name) => sum + squares.get(name)!, 0);
    const loss = lossSums.reduce((sum, micro) => sum + micro, 0) / (request.starts.length * this.#contextLength);
    const gradNorm = Math.sqrt(total);
    if (!Number.isFinite(loss) || !Number.isFinite(gradNorm)) {
      throw new NotFinite(`Step ${request.step} has loss ${loss} and gradient norm ${gradNorm}.`);
    }
    signal.throwIfAborted();
    const { gradClip } = request;
    // This is PyTorch's clip_grad_norm_.
    const gradScale = gradClip > 0 && gradNorm > gradClip ? gradClip / (gradNorm + 1e-6) : 1;
    this.#update = new ModelUpdate(this.#lease, {
      stages: this.#stages,
      room: this.#room,
      signal,
      step: { ...request.adamw, gradScale },
      decayAll: request.decayAll,
    });
    return { loss, gradNorm };
  }

  /** Resolves to the mean loss over the windows that begin at `starts`, without dropout. */
  async evaluate(starts: readonly number[], signal: AbortSignal): Promise<number> {
    const sums = await this.#forward(starts, {
      signal,
      take: (losses, windows) => sum(losses.subarray(0, windows * this.#contextLength)),
    });
    return sums.reduce((total, micro) => total + micro, 0) / (starts.length * this.#contextLength);
  }

  /** Resolves to a sum for each window: the losses of its rows from `firstRow` on, in double precision and without dropout. */
  async lossSums(
    windows: readonly { readonly start: number; readonly firstRow: number }[],
    signal: AbortSignal,
  ): Promise<number[]> {
    const T = this.#contextLength;
    const sums = await this.#forward(
      windows.map(({ start }) => start),
      {
        signal,
        take: (losses, count, first) =>
          windows
            .slice(first, first + count)
            .map(({ firstRow }, i) => sum(losses.subarray(i * T + firstRow, (i + 1) * T))),
      },
    );
    return sums.flat();
  }

  /**
   * Continues `prompt` by up to `maxTokens` ids, as far as the model's context goes. It is called between two steps, and changes
   * nothing.
   */
  async decode(
    prompt: readonly number[],
    { maxTokens, temperature, seed, signal }: DecodeOptions,
  ): Promise<readonly number[]> {
    const lease = this.#lease;
    const context = this.#config.context_length;
    const ids = [...prompt];
    const end = Math.min(prompt.length + maxTokens, context);
    await this.#updated();
    while (ids.length < end) {
      signal.throwIfAborted();
      const rows = Math.min(context, Math.ceil(ids.length / DECODE_ROWS) * DECODE_ROWS);
      const filled = [...ids, ...Array<number>(rows - ids.length).fill(0)];
      let { x } = await this.#embedder.thread.call('trainDecodeEmbed', { lease, ids: filled });
      const [last, index] = [ids.length - 1, ids.length - prompt.length];
      for (const { thread } of this.#stages) {
        const next = await thread.call('trainDecode', { lease, x, last, temperature, seed, index });
        if (next.id !== null) ids.push(next.id);
        else x = next.x!;
      }
    }
    return ids.slice(prompt.length);
  }

  /**
   * Sends windows forward. For each micro-batch `take` gets the losses of its rows, the number of its windows that count, and the
   * index of its first window.
   */
  async #forward<R>(
    starts: readonly number[],
    {
      signal,
      take,
    }: { signal: AbortSignal; take: (losses: Float32Array, windowCount: number, firstWindow: number) => R },
  ): Promise<R[]> {
    const M = this.#microBatchSize;
    await this.#updated();
    // The last micro-batch is filled up with windows that do not count.
    const filled = [...starts, ...Array.from({ length: (M - (starts.length % M)) % M }, () => starts[0])];
    return await this.#inFlight(this.#microBatches(filled, 0), async (micro) => {
      const lease = this.#lease;
      let { x } = await this.#embedder.thread.call('trainEmbed', { lease, micro, train: false }, { signal });
      for (const { thread } of this.#stages) {
        const { y, losses } = await thread.call('trainEvaluate', { lease, micro, x }, { signal });
        const first = micro.firstSequence;
        if (losses !== null) return take(losses, Math.min(M, starts.length - first), first);
        x = y!;
      }
      assert(false, 'no stage has the head');
    });
  }

  /** Holds the model's state as it is now. It is called between two steps, for one snapshot at a time. */
  async snapshot(): Promise<ModelSnapshot> {
    const lease = this.#lease;
    await this.#updated();
    const plans = this.#stages.map(({ plan }) => plan);
    const total = plans.reduce((sum, { params }) => sum + params, 0);
    await this.#all(({ thread, plan }) =>
      thread.call('trainSnapshot', { lease, keptBytesMax: SNAPSHOT_BYTES_MAX * (plan.params / total) }),
    );
    const groups = snapshotGroups(this.#config, plans);
    const buffers = (this.#buffers ??= new GroupBuffers(groups));
    const chunks = readGroups(groups, async (group) => {
      const buffer = await buffers.take();
      const { stage, addresses } = group;
      const into = new Float32Array(buffer, 0, groupElements(group));
      await this.#stages[stage].thread.call('trainRead', { lease, addresses, into });
      this.#room.free();
      return chunksIn(buffer, group);
    });
    const end = async (): Promise<void> => {
      const calls = this.#stages.map(({ thread }) => thread.call('trainSnapshotEnd', { lease }));
      // The stages handle these calls behind the reads that are still under way.
      await Promise.allSettled(calls);
      buffers.reclaim();
      this.#room.free();
    };
    const giveBack = ([first]: readonly TensorChunk[]): void => buffers.give(first.bytes.buffer as SharedArrayBuffer);
    return { chunks, giveBack, end };
  }

  async close(): Promise<void> {
    await this.#update?.settled();
    await Promise.allSettled(this.#stages.map(({ thread }) => thread.call('unload', { lease: this.#lease })));
  }

  /** The stage with the embeddings, and its number. */
  get #embedder(): { readonly thread: StageCaller; readonly number: number } {
    const number = this.#stages.findIndex(({ plan }) => plan.embeds);
    return { number, thread: this.#stages[number].thread };
  }

  #microBatches(starts: readonly number[], step: number): MicroBatch[] {
    const M = this.#microBatchSize;
    return Array.from({ length: starts.length / M }, (_, index) => ({
      index,
      step,
      firstSequence: index * M,
      starts: starts.slice(index * M, (index + 1) * M),
    }));
  }

  /**
   * Runs all micro-batches. They start in order and a bounded number of them runs at a time, because each holds activations.
   * Waits for all of them even when one fails, so that nothing of this step is left running.
   */
  async #inFlight<T>(micros: readonly MicroBatch[], run: (micro: MicroBatch) => Promise<T>): Promise<T[]> {
    const limit = FLIGHTS_PER_STAGE * this.#stages.length;
    const started: Promise<T>[] = [];
    const failures: unknown[] = [];
    for (const [i, micro] of micros.entries()) {
      if (i >= limit) await Promise.allSettled([started[i - limit]]);
      if (failures.length > 0) break;
      const running = run(micro);
      running.catch((error: unknown) => failures.push(error));
      started.push(running);
    }
    const settled = await Promise.allSettled(started);
    const rejected = settled.find((result) => result.status === 'rejected');
    if (rejected !== undefined) {
      throw await this.#causeOf(rejected.reason);
    }
    return await Promise.all(started);
  }

  /**
   * Runs the forward and the backward pass of one micro-batch and computes its weight gradients. Resolves to the sum of its rows'
   * losses.
   */
  async #trainMicroBatch(
    micro: MicroBatch,
    { gradients, signal }: { gradients: WeightGradients; signal: AbortSignal },
  ): Promise<number> {
    const lease = this.#lease;
    const urgent = { priority: PRIORITY.backward, signal };
    await this.#update?.ready(this.#embedder.number);
    let { x } = await this.#embedder.thread.call('trainEmbed', { lease, micro, train: true }, { signal });
    let lossSum = 0;
    let dy: Float32Array | null = null;
    for (const [stage, { thread }] of this.#stages.entries()) {
      await this.#update?.ready(stage);
      const reply = await thread.call('trainForward', { lease, micro, x }, { signal });
      if ('y' in reply) x = reply.y;
      else [lossSum, dy] = [sum(reply.losses), reply.dx];
    }
    const computed: Promise<unknown>[] = [];
    for (const [stage, { thread }] of [...this.#stages.entries()].reverse()) {
      if (stage < this.#stages.length - 1) {
        ({ dx: dy } = await thread.call('trainBackward', { lease, micro, dy: dy! }, urgent));
      }
      const ofStage = gradients.add(stage, micro);
      // This is awaited below. If the micro-batch fails before that, the failure that counts is the one thrown.
      ofStage.catch(() => undefined);
      computed.push(ofStage);
    }
    await this.#embedder.thread.call('trainEmbedBackward', { lease, micro, dx: dy! }, urgent);
    await Promise.all(computed);
    return lossSum;
  }

  /** Resolves when the last step's update is over. */
  async #updated(): Promise<void> {
    try {
      await this.#update?.all();
    } catch (error) {
      throw await this.#causeOf(error);
    }
  }

  /**
   * Makes the stages forget the step, and resolves to the cause of a failure. When a thread dies, the first error may come from
   * another thread, which misses what the dead one should have lent it.
   */
  async #causeOf(error: unknown): Promise<unknown> {
    await this.#update?.settled();
    const settled = await Promise.allSettled(
      this.#stages.map(({ thread }) => thread.call('trainReset', { lease: this.#lease })),
    );
    const reasons = settled.map((result): unknown => (result.status === 'rejected' ? result.reason : null));
    return reasons.find((reason) => reason instanceof WorkerDied) ?? error;
  }

  /** Makes the same call on every stage at once, and waits for all of them before it throws. */
  async #all<T>(call: (stage: { thread: StageCaller; plan: PlanStage }, index: number) => Promise<T>): Promise<T[]> {
    const settled = await Promise.allSettled(this.#stages.map(call));
    const rejected = settled.find((result) => result.status === 'rejected');
    if (rejected !== undefined) throw rejected.reason;
    return settled.map((result) => (result as PromiseFulfilledResult<T>).value);
  }
}

/** Makes a channel between every two of the stages. Returns the ends of each stage, by the number of the other stage. */
function stagePorts(stageCount: number): (MessagePort | null)[][] {
  const ports = Array.from({ length: stageCount }, () => Array<MessagePort | null>(stageCount).fill(null));
  for (let a = 0; a < stageCount; a++) {
    for (let b = a + 1; b < stageCount; b++) {
      const { port1, port2 } = new MessageChannel();
      [ports[a][b], ports[b][a]] = [port1, port2];
    }
  }
  return ports;
}

/** Adds in double precision, in order. */
function sum(values: Float32Array): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}
