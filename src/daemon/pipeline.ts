// One model in training, spread over the stages. A step sends its micro-batches forward through the stages and their
// gradients back; a stage computes weight gradients when it has nothing more urgent. Each stage takes requests of a kind in
// micro-batch order, so every sum has one order and its bits do not depend on timing or on the number of stages.

import type { AdamwStep } from '../model/adamw.ts';
import type { GptConfig } from '../model/config.ts';
import { assert, GptdError } from '../model/errors.ts';
import { ownsTensor, tensorTable, type TensorSpec } from '../model/tensors.ts';
import type { MicroBatch, StageCalls, TensorChunk, TensorPart, TrainSetup } from '../workers/messages.ts';
import { CHUNK_BYTES_MAX } from '../workers/messages.ts';
import { FLIGHTS_PER_STAGE } from './memory.ts';
import type { PlanStage } from './protocol.ts';
import { PRIORITY, type WorkerThread } from './worker-thread.ts';

export type StageThread = WorkerThread<StageCalls>;

export interface StepResult {
  /** Mean over the step's tokens. */
  readonly loss: number;
  /** Of the whole gradient before clipping. */
  readonly gradNorm: number;
}

export interface StepRequest {
  /** Number of the update within the model's life: keys dropout. */
  readonly step: number;
  /** Where the batch's windows begin in the dataset. */
  readonly starts: readonly number[];
  /** AdamW's settings but for the clipping factor. */
  readonly adamw: Omit<AdamwStep, 'gradScale'>;
  /** Largest gradient norm, 0 for no clipping. */
  readonly gradClip: number;
  readonly decayAll: boolean;
}

/** Elements of one chunk of a checkpoint. */
const CHUNK_SIZE = CHUNK_BYTES_MAX / 4;
/** Chunks that are read from the stages ahead of the store. */
const READ_AHEAD = 4;

export class Pipeline {
  readonly #config: GptConfig;
  readonly #lease: string;
  readonly #stages: readonly { readonly thread: StageThread; readonly plan: PlanStage }[];
  readonly #microBatchSize: number;
  readonly #contextLength: number;

  private constructor(
    threads: readonly StageThread[],
    { lease, plan, setup }: { lease: string; plan: readonly PlanStage[]; setup: Omit<TrainSetup, 'stage'> },
  ) {
    this.#config = setup.config;
    this.#lease = lease;
    this.#stages = plan.map((stage) => ({ thread: threads[stage.worker], plan: stage }));
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
      await pipeline.#all((stage) =>
        stage.thread.call('trainLoad', { lease, checkpointId, setup: { ...setup, stage: stage.plan } }),
      );
    } catch (error) {
      await pipeline.close();
      throw error;
    }
    return pipeline;
  }

  /** One optimizer update. Nothing changes when it throws: `cancelled` on abort, `engine_failed` for a loss that is no number. */
  async step(request: StepRequest, signal: AbortSignal): Promise<StepResult> {
    const micros = this.#microBatches(request.starts, request.step);
    const lossSums = await this.#inFlight(micros, (micro) => this.#trainMicroBatch(micro, signal));
    const finished = await this.#all(({ thread }) => thread.call('trainFinish', { lease: this.#lease }));
    const squares = new Map(
      finished.flatMap((stage) => stage.squares.map((square) => [square.tensor, square.sumOfSquares])),
    );
    const total = tensorTable(this.#config).reduce((sum, { name }) => sum + squares.get(name)!, 0);
    const loss = lossSums.reduce((sum, micro) => sum + micro, 0) / (request.starts.length * this.#contextLength);
    const gradNorm = Math.sqrt(total);
    if (!Number.isFinite(loss) || !Number.isFinite(gradNorm)) {
      throw new GptdError(
        'engine_failed',
        `Step ${request.step} has loss ${loss} and gradient norm ${gradNorm}: train on from the last checkpoint with a smaller --lr, a longer --warmup-steps or --grad-clip.`,
      );
    }
    const { gradClip } = request;
    // PyTorch's clip_grad_norm_.
    const gradScale = gradClip > 0 && gradNorm > gradClip ? gradClip / (gradNorm + 1e-6) : 1;
    const step = { ...request.adamw, gradScale };
    await this.#all(({ thread }) =>
      thread.call('trainUpdate', { lease: this.#lease, step, decayAll: request.decayAll }),
    );
    return { loss, gradNorm };
  }

  /** Mean loss over the windows that begin at `starts`, without dropout. */
  async evaluate(starts: readonly number[], signal: AbortSignal): Promise<number> {
    const M = this.#microBatchSize;
    // The last micro-batch is filled up with windows that do not count.
    const filled = [...starts, ...Array.from({ length: (M - (starts.length % M)) % M }, () => starts[0])];
    const sums = await this.#inFlight(this.#microBatches(filled, 0), async (micro) => {
      let { x } = await this.#embedder.call('trainEmbed', { lease: this.#lease, micro, train: false });
      for (const { thread } of this.#stages) {
        signal.throwIfAborted();
        const { y, losses } = await thread.call('trainEvaluate', { lease: this.#lease, micro, x });
        if (losses !== null)
          return sum(losses.subarray(0, (starts.length - micro.firstSequence) * this.#contextLength));
        x = y!;
      }
      assert(false, 'no stage has the head');
    });
    return sums.reduce((total, micro) => total + micro, 0) / (starts.length * this.#contextLength);
  }

  /** The model's arrays as chunks: weights in table order, then both moments. */
  async *chunks(): AsyncGenerator<TensorChunk> {
    const reads: (() => Promise<TensorChunk>)[] = [];
    for (const part of ['w', 'm', 'v'] as const) {
      for (const spec of tensorTable(this.#config)) {
        for (let start = 0; start < spec.size; start += CHUNK_SIZE) reads.push(() => this.#read(spec, part, start));
      }
    }
    const ahead: Promise<TensorChunk>[] = [];
    for (const read of reads) {
      const chunk = read();
      // Awaited in its turn; it may fail before that.
      chunk.catch(() => undefined);
      ahead.push(chunk);
      if (ahead.length > READ_AHEAD) yield await ahead.shift()!;
    }
    for (const chunk of ahead) yield await chunk;
  }

  async close(): Promise<void> {
    await Promise.allSettled(this.#stages.map(({ thread }) => thread.call('unload', { lease: this.#lease })));
  }

  get #embedder(): StageThread {
    return this.#stages.find(({ plan }) => plan.embeds)!.thread;
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
   * Runs all micro-batches, started in order and a bounded number at a time: each holds activations. Waits for all of them
   * even when one fails, so that nothing of this step is left running.
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
      await Promise.allSettled(this.#stages.map(({ thread }) => thread.call('trainReset', { lease: this.#lease })));
      throw rejected.reason;
    }
    return await Promise.all(started);
  }

  /** Forward, backward and weight gradients of one micro-batch; resolves to the sum of its rows' losses. */
  async #trainMicroBatch(micro: MicroBatch, signal: AbortSignal): Promise<number> {
    const lease = this.#lease;
    let { x } = await this.#embedder.call('trainEmbed', { lease, micro, train: true });
    let lossSum = 0;
    for (const { thread } of this.#stages) {
      signal.throwIfAborted();
      const { y, losses } = await thread.call('trainForward', { lease, micro, x });
      if (losses !== null) lossSum = sum(losses);
      else x = y!;
    }
    const weightPasses: Promise<unknown>[] = [];
    let dy: Float32Array | null = null;
    for (const { thread } of [...this.#stages].reverse()) {
      signal.throwIfAborted();
      const { dx }: { dx: Float32Array } = await thread.call(
        'trainBackward',
        { lease, micro, dy },
        { priority: PRIORITY.backward },
      );
      const pass = thread.call('trainWeights', { lease, micro }, { priority: PRIORITY.weights });
      // Awaited below; should this micro-batch fail before that, the failure that counts is the one thrown.
      pass.catch(() => undefined);
      weightPasses.push(pass);
      dy = dx;
    }
    await this.#embedder.call('trainEmbedBackward', { lease, micro, dx: dy! }, { priority: PRIORITY.backward });
    await Promise.all(weightPasses);
    return lossSum;
  }

  async #read(spec: TensorSpec, part: TensorPart, start: number): Promise<TensorChunk> {
    const owner = this.#stages.find(({ plan }) => ownsTensor(plan, spec))!;
    const count = Math.min(CHUNK_SIZE, spec.size - start);
    const { data } = await owner.thread.call('trainRead', {
      lease: this.#lease,
      tensor: spec.name,
      part,
      start,
      count,
    });
    return { tensor: spec.name, part, offsetBytes: start * 4, bytes: new Uint8Array(data.buffer, 0, data.byteLength) };
  }

  /** The same call on every stage at once; waits for all before it throws. */
  async #all<T>(call: (stage: { thread: StageThread; plan: PlanStage }) => Promise<T>): Promise<T[]> {
    const settled = await Promise.allSettled(this.#stages.map(call));
    const rejected = settled.find((result) => result.status === 'rejected');
    if (rejected !== undefined) throw rejected.reason;
    return settled.map((result) => (result as PromiseFulfilledResult<T>).value);
  }
}

/** In double precision, in order. */
function sum(values: Float32Array): number {
  let total = 0;
  for (const value of values) total += value;
  return total;
}
