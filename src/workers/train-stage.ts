// What one worker thread holds of a model in training: the tensors of its blocks with gradients and AdamW's moments, and the
// activations of the micro-batches in flight. Every sum runs in micro-batch order, so its bits do not depend on how the
// stages interleave. The pipeline decides what runs when; this file never does. Letters: B, T, D, V as in the model.

import { ADAMW_CHUNK_SIZE, adamwProgram, adamwScalars, type AdamwStep } from '../model/adamw.ts';
import {
  blockBackwardProgram,
  blockForwardProgram,
  blockWeightsProgram,
  BLOCK_ROW_GRADIENTS,
  BLOCK_SAVED,
  type BatchShape,
} from '../model/block.ts';
import { dropoutInPlace, embed, embedBackward } from '../model/embedding.ts';
import { assert } from '../model/errors.ts';
import type { Graph } from '../model/graph.ts';
import { headLossProgram, headTensorNames, headTrainProgram } from '../model/head.ts';
import { dropoutMask, PURPOSE, type Purpose } from '../model/philox.ts';
import { blockTensors, ownsTensor, tensorTable, type TensorSpec } from '../model/tensors.ts';
import type { CompileOptions, Engine, Program, Tensor, Tensors } from './engine.ts';
import { CHUNK_SIZE, type ChunkAddress, type MicroBatch, type TensorChunk } from './messages.ts';
import type { DecodingStage } from './train-decode.ts';
import type { TensorPart, TrainSetup } from './messages.ts';
import { Snapshot } from './snapshot.ts';

/**
 * The head is the one program that no split into stages divides, so it may use a core that another stage leaves idle. The
 * number is fixed: it is part of what decides the bits, and must not follow the machine or the layout.
 */
const HEAD_THREAD_COUNT = 2;

/** One of the stage's tensors with all that training keeps beside it. */
interface Parameter {
  readonly spec: TensorSpec;
  readonly w: Float32Array;
  readonly m: Float32Array;
  readonly v: Float32Array;
  /** Gradient of the current step; null before the first micro-batch. */
  g: Float32Array | null;
}

interface BlockActivations {
  readonly x: Float32Array;
  readonly saved: Record<string, Float32Array>;
  readonly masks: Record<string, Uint8Array>;
  dy: Float32Array | null;
  gradients: Record<string, Float32Array> | null;
}

interface Flight {
  readonly blocks: BlockActivations[];
  /** Gradient of the last block's output, from the head; only on the stage that has it. */
  dx: Float32Array | null;
}

export type LoadTensor = (spec: TensorSpec, part: TensorPart) => Float32Array;

export class TrainStage {
  readonly #engine: Engine;
  readonly #setup: TrainSetup;
  readonly #batch: BatchShape;
  readonly #tokens: Uint16Array | Uint32Array;
  readonly #parameters = new Map<string, Parameter>();
  readonly #programs = new Map<string, Promise<Program>>();
  readonly #flights = new Map<number, Flight>();
  /** dx of each micro-batch at the embeddings: added to the tables in order when all are there. */
  readonly #embeddingGradients = new Map<number, { ids: Uint32Array; dx: Float32Array }>();
  #weightPassesDone = new Map<number, number>();
  #headPassesDone = 0;
  #snapshot: Snapshot | null = null;
  /** Elements of the table's tensors, by name, that the update under way is done with. */
  readonly #updated = new Map<string, number>();

  constructor(engine: Engine, setup: TrainSetup, load: LoadTensor) {
    this.#engine = engine;
    this.#setup = setup;
    this.#batch = { B: setup.microBatchSize, T: setup.contextLength };
    this.#tokens = setup.wideTokens ? new Uint32Array(setup.tokens) : new Uint16Array(setup.tokens);
    for (const spec of tensorTable(setup.config)) {
      if (!ownsTensor(setup.stage, spec)) continue;
      const moment = (part: 'm' | 'v'): Float32Array =>
        setup.optimizerState ? load(spec, part) : new Float32Array(spec.size);
      this.#parameters.set(spec.name, { spec, w: load(spec, 'w'), m: moment('m'), v: moment('v'), g: null });
    }
  }

  #program(name: string, graph: () => Graph, options: CompileOptions = {}): Promise<Program> {
    let program = this.#programs.get(name);
    if (program === undefined) {
      program = this.#engine.compile(graph(), options);
      this.#programs.set(name, program);
    }
    return program;
  }

  #parameter(name: string): Parameter {
    const parameter = this.#parameters.get(name);
    assert(parameter !== undefined, `this stage does not own ${name}`);
    return parameter;
  }

  #blockTensors(block: number): Record<string, Tensor> {
    const inputs: Record<string, Tensor> = {};
    for (const { name } of blockTensors(this.#setup.config, block)) {
      const { w, spec } = this.#parameter(name);
      inputs[name.slice(`h.${block}.`.length)] = { data: w, dims: spec.shape };
    }
    return inputs;
  }

  #rows(data: Float32Array): Tensor {
    const rowCount = this.#batch.B * this.#batch.T;
    return { data, dims: [rowCount, data.length / rowCount] };
  }

  /** Token ids of a micro-batch's windows, `shift` 0 for inputs and 1 for targets: (B*T). */
  #ids({ starts }: MicroBatch, shift: 0 | 1): Uint32Array {
    const { T } = this.#batch;
    const ids = new Uint32Array(starts.length * T);
    for (const [row, start] of starts.entries()) {
      for (let t = 0; t < T; t++) ids[row * T + t] = this.#tokens[start + shift + t]!;
    }
    return ids;
  }

  /** One draw an element: the stream of a purpose runs over blocks, sequences of the batch, then the sequence's elements. */
  #mask(
    micro: MicroBatch,
    purpose: Purpose,
    { block, perSequence }: { block: number; perSequence: number },
  ): Uint8Array {
    const { seed, batchSize, config } = this.#setup;
    const mask = new Uint8Array(micro.starts.length * perSequence);
    const index = (block * batchSize + micro.firstSequence) * perSequence;
    dropoutMask(mask, { seed, purpose, step: micro.step, index, rate: config.drop_rate });
    return mask;
  }

  #blockMasks(micro: MicroBatch, block: number): Record<string, Uint8Array> {
    const { drop_rate: rate, emb_dim: D, n_heads: H } = this.#setup.config;
    const { T } = this.#batch;
    if (rate === 0) return {};
    return {
      maskWeights: this.#mask(micro, PURPOSE.dropoutAttention, { block, perSequence: H * T * T }),
      maskAttention: this.#mask(micro, PURPOSE.dropoutAttentionResidual, { block, perSequence: T * D }),
      maskFeedForward: this.#mask(micro, PURPOSE.dropoutFeedForwardResidual, { block, perSequence: T * D }),
    };
  }

  #maskTensors(masks: Record<string, Uint8Array>, names: readonly string[]): Tensors {
    const { B, T } = this.#batch;
    const { n_heads: H, emb_dim: D } = this.#setup.config;
    const present = names.filter((name) => Object.hasOwn(masks, name));
    return Object.fromEntries(
      present.map((name) => [name, { data: masks[name], dims: name === 'maskWeights' ? [B, H, T, T] : [B * T, D] }]),
    );
  }

  /** x (B*T, D) of a micro-batch, after the embeddings' dropout when `train`. */
  embed(micro: MicroBatch, { train }: { train: boolean }): Float32Array {
    const { config } = this.#setup;
    const D = config.emb_dim;
    const tables = { wte: this.#parameter('wte.weight').w, wpe: this.#parameter('wpe.weight').w, D };
    const x = embed(this.#ids(micro, 0), tables, this.#batch);
    if (train && config.drop_rate > 0) dropoutInPlace(x, this.#embeddingMask(micro), config.drop_rate);
    return x;
  }

  #embeddingMask(micro: MicroBatch): Uint8Array {
    const perSequence = this.#batch.T * this.#setup.config.emb_dim;
    return this.#mask(micro, PURPOSE.dropoutEmbedding, { block: 0, perSequence });
  }

  /** x (B*T, D) -> y (B*T, D); the stage with the head goes on to the loss of each row (B*T) and its backward pass. */
  async forward(micro: MicroBatch, x: Float32Array): Promise<{ y: Float32Array | null; losses: Float32Array | null }> {
    const { config, stage } = this.#setup;
    const program = await this.#program('forward', () => blockForwardProgram(config, this.#batch, { save: true }));
    const flight: Flight = { blocks: [], dx: null };
    for (let block = stage.firstBlock; block < stage.endBlock; block++) {
      const masks = this.#blockMasks(micro, block);
      const { y, ...saved } = await program.run({
        x: this.#rows(x),
        ...this.#blockTensors(block),
        ...this.#maskTensors(masks, Object.keys(masks)),
      });
      flight.blocks.push({ x, saved, masks, dy: null, gradients: null });
      x = y!;
    }
    this.#flights.set(micro.index, flight);
    if (!stage.head) return { y: x, losses: null };
    const { losses, dx } = await this.#headTrain(micro, x);
    flight.dx = dx;
    return { y: null, losses };
  }

  #headInputs(micro: MicroBatch, x: Float32Array): Record<string, Tensor> {
    const [weight, bias, projection] = headTensorNames(this.#setup.config).map((name) => this.#parameter(name));
    return {
      x: this.#rows(x),
      target: {
        data: BigInt64Array.from(this.#ids(micro, 1), BigInt),
        dims: [x.length / this.#setup.config.emb_dim, 1],
      },
      'ln_f.weight': { data: weight.w, dims: weight.spec.shape },
      'ln_f.bias': { data: bias.w, dims: bias.spec.shape },
      projection: { data: projection.w, dims: projection.spec.shape },
    };
  }

  async #headTrain(micro: MicroBatch, x: Float32Array): Promise<{ losses: Float32Array; dx: Float32Array }> {
    const { config, batchSize, contextLength, microBatchSize } = this.#setup;
    const parameters = headTensorNames(config).map((name) => this.#parameter(name));
    const accumulate = micro.index > 0;
    assert(this.#headPassesDone === micro.index, 'the head takes micro-batches in order');
    this.#headPassesDone += 1;
    const rows = { rowCount: microBatchSize * contextLength, tokenCount: batchSize * contextLength };
    const program = await this.#program(
      `head ${accumulate ? 'next' : 'first'}`,
      () => headTrainProgram(config, { ...rows, accumulate }),
      { threadCount: HEAD_THREAD_COUNT },
    );
    const names = ['ln_f.weight', 'ln_f.bias', 'projection'] as const;
    const inputs = this.#headInputs(micro, x);
    if (accumulate) {
      for (const [i, name] of names.entries()) {
        inputs[`${name}.soFar`] = { data: parameters[i].g!, dims: parameters[i].spec.shape };
      }
    }
    const outputs = await program.run(inputs);
    for (const [i, name] of names.entries()) parameters[i].g = outputs[`${name}.gradient`]!;
    return { losses: outputs['loss'], dx: outputs['dx'] };
  }

  /** dy (B*T, D) of the stage's last block, null where the head has left it here -> dx (B*T, D) of its first. */
  async backward(micro: MicroBatch, dy: Float32Array | null): Promise<Float32Array> {
    const { config, stage } = this.#setup;
    const flight = this.#flights.get(micro.index);
    assert(flight !== undefined, `micro-batch ${micro.index} has not been forward through this stage`);
    const program = await this.#program('backward', () => blockBackwardProgram(config, this.#batch));
    let gradient = dy ?? flight.dx;
    assert(gradient !== null, 'backward without a gradient');
    for (let block = stage.endBlock - 1; block >= stage.firstBlock; block--) {
      const at = flight.blocks[block - stage.firstBlock];
      const { T } = this.#batch;
      const weights = { data: at.saved['weights'], dims: [this.#batch.B, config.n_heads, T, T] };
      const rows = BLOCK_SAVED.filter((name) => name !== 'weights');
      const tensors = this.#blockTensors(block);
      const { dx, ...gradients } = await program.run({
        dy: this.#rows(gradient),
        x: this.#rows(at.x),
        weights,
        ...Object.fromEntries(rows.map((name) => [name, this.#rows(at.saved[name])])),
        ...Object.fromEntries(BACKWARD_TENSORS.map((name) => [name, tensors[name]])),
        ...this.#maskTensors(at.masks, ['maskWeights', 'maskAttention', 'maskFeedForward']),
      });
      at.dy = gradient;
      at.gradients = gradients;
      gradient = dx!;
    }
    return gradient;
  }

  /** Adds a micro-batch's weight gradients, for all blocks of the stage. Micro-batches come in order. */
  async weights(micro: MicroBatch): Promise<void> {
    const { config, stage } = this.#setup;
    const flight = this.#flights.get(micro.index);
    assert(flight !== undefined, `micro-batch ${micro.index} is not in flight`);
    const accumulate = micro.index > 0;
    const program = await this.#program(`weights ${accumulate ? 'next' : 'first'}`, () =>
      blockWeightsProgram(config, this.#batch, { accumulate }),
    );
    for (let block = stage.endBlock - 1; block >= stage.firstBlock; block--) {
      assert(
        (this.#weightPassesDone.get(block) ?? 0) === micro.index,
        `weight gradients out of order in block ${block}`,
      );
      this.#weightPassesDone.set(block, micro.index + 1);
      const at = flight.blocks[block - stage.firstBlock];
      const tensors = this.#blockTensors(block);
      const names = Object.keys(tensors);
      const inputs: Record<string, Tensor> = {
        x: this.#rows(at.x),
        dy: this.#rows(at.dy!),
        ...Object.fromEntries(['context', 'a', 'u'].map((name) => [name, this.#rows(at.saved[name])])),
        ...Object.fromEntries(BLOCK_ROW_GRADIENTS.map((name) => [name, this.#rows(at.gradients![name])])),
        ...Object.fromEntries(NORM_TENSORS.map((name) => [name, tensors[name]])),
        ...this.#maskTensors(at.masks, ['maskAttention', 'maskFeedForward']),
      };
      if (accumulate) {
        for (const name of names) {
          inputs[`${name}.soFar`] = { data: this.#parameter(`h.${block}.${name}`).g!, dims: tensors[name].dims };
        }
      }
      const outputs = await program.run(inputs);
      for (const name of names) this.#parameter(`h.${block}.${name}`).g = outputs[`${name}.gradient`]!;
    }
    this.#flights.delete(micro.index);
  }

  /** Keeps dx (B*T, D) at the embeddings' output for `finish`. */
  embedBackward(micro: MicroBatch, dx: Float32Array): void {
    const rate = this.#setup.config.drop_rate;
    if (rate > 0) dropoutInPlace(dx, this.#embeddingMask(micro), rate);
    this.#embeddingGradients.set(micro.index, { ids: this.#ids(micro, 0), dx });
  }

  /**
   * Ends the backward pass of a step: adds the embeddings' gradients, the head's use of a tied wte first, and returns the
   * sum of squares of each tensor's gradient in double precision, in table order.
   */
  finish(): { tensor: string; sumOfSquares: number }[] {
    const { config, contextLength: T, stage } = this.#setup;
    if (stage.embeds) {
      const [wte, wpe] = [this.#parameter('wte.weight'), this.#parameter('wpe.weight')];
      const dwte = wte.g ?? new Float32Array(wte.spec.size);
      const dwpe = new Float32Array(wpe.spec.size);
      for (const [, { ids, dx }] of [...this.#embeddingGradients].sort(([a], [b]) => a - b)) {
        embedBackward(dx, ids, { dwte, dwpe, D: config.emb_dim, T });
      }
      [wte.g, wpe.g] = [dwte, dwpe];
      this.#embeddingGradients.clear();
    }
    this.#weightPassesDone = new Map();
    this.#headPassesDone = 0;
    return [...this.#parameters.values()].map(({ spec, g }) => {
      assert(g !== null, `${spec.name} has no gradient`);
      return { tensor: spec.name, sumOfSquares: sumOfSquares(g) };
    });
  }

  /**
   * AdamW on every tensor of the stage; weights and moments change in place, the gradients are dropped. False when a snapshot
   * has no room for what would be overwritten next: read more of it and call again with the same step.
   */
  async update(step: AdamwStep, { decayAll }: { decayAll: boolean }): Promise<boolean> {
    const program = await this.#program('adamw', adamwProgram);
    const scalars = (weightDecay: number): Tensors =>
      Object.fromEntries(
        Object.entries(adamwScalars({ ...step, weightDecay })).map(([name, value]) => [
          name,
          { data: Float32Array.of(value), dims: [] },
        ]),
      );
    const [decayed, plain] = [scalars(step.weightDecay), scalars(0)];
    for (const parameter of this.#parameters.values()) {
      const { spec, w, m, v, g } = parameter;
      for (let start = this.#updated.get(spec.name) ?? 0; start < spec.size; start += ADAMW_CHUNK_SIZE) {
        assert(g !== null, `${spec.name} has no gradient`);
        if (!this.#mayOverwrite(parameter, start)) return false;
        const end = Math.min(start + ADAMW_CHUNK_SIZE, spec.size);
        const chunk = (data: Float32Array): Tensor => ({ data: data.subarray(start, end), dims: [end - start] });
        const [cw, cm, cv] = [chunk(w), chunk(m), chunk(v)];
        await program.run(
          { w: cw, g: chunk(g), m: cm, v: cv, ...(decayAll || spec.matrix ? decayed : plain) },
          { wNext: cw, mNext: cm, vNext: cv },
        );
        this.#updated.set(spec.name, end);
      }
      parameter.g = null;
    }
    this.#updated.clear();
    return true;
  }

  /** Whether the optimizer may change the elements from `start` on: what a snapshot still needs of them is set aside. */
  #mayOverwrite(parameter: Parameter, start: number): boolean {
    const snapshot = this.#snapshot;
    if (snapshot === null) return true;
    const { name: tensor, size } = parameter.spec;
    const first = start - (start % CHUNK_SIZE);
    const count = Math.min(CHUNK_SIZE, size - first);
    return TENSOR_PARTS.every((part) => snapshot.release({ tensor, part, start: first, count }, parameter[part]));
  }

  /** Between two steps: `readSnapshot` gives the arrays as they are now until `endSnapshot`. */
  beginSnapshot({ keptBytesMax }: { readonly keptBytesMax: number }): void {
    assert(this.#updated.size === 0, 'a snapshot begins between two updates');
    this.#snapshot = new Snapshot({ keptBytesMax });
  }

  readSnapshot(addresses: readonly ChunkAddress[]): TensorChunk[] {
    const snapshot = this.#snapshot;
    assert(snapshot !== null, 'no snapshot has begun');
    return addresses.map((address) => {
      const { tensor, part, start } = address;
      const data = snapshot.take(address, this.#parameter(tensor)[part]);
      return { tensor, part, offsetBytes: start * 4, bytes: new Uint8Array(data.buffer, 0, data.byteLength) };
    });
  }

  endSnapshot(): void {
    this.#snapshot = null;
  }

  /** Forgets a step that was begun and not finished. */
  reset(): void {
    this.#flights.clear();
    this.#embeddingGradients.clear();
    this.#weightPassesDone = new Map();
    this.#headPassesDone = 0;
    for (const parameter of this.#parameters.values()) parameter.g = null;
  }

  /** x (B*T, D) -> y (B*T, D), or the loss of each row (B*T) on the head's stage. No dropout, nothing kept. */
  async evaluate(micro: MicroBatch, x: Float32Array): Promise<{ y: Float32Array | null; losses: Float32Array | null }> {
    const { config, stage } = this.#setup;
    const program = await this.#program('evaluate', () => blockForwardProgram(config, this.#batch, { save: false }));
    for (let block = stage.firstBlock; block < stage.endBlock; block++) {
      x = (await program.run({ x: this.#rows(x), ...this.#blockTensors(block) }))['y']!;
    }
    if (!stage.head) return { y: x, losses: null };
    const rowCount = this.#batch.B * this.#batch.T;
    const head = await this.#program('loss', () => headLossProgram(config, rowCount), {
      threadCount: HEAD_THREAD_COUNT,
    });
    return { y: null, losses: (await head.run(this.#headInputs(micro, x)))['loss'] };
  }

  /** What train-decode.ts works with, between two steps. */
  decoding(): DecodingStage {
    return {
      config: this.#setup.config,
      range: this.#setup.stage,
      program: (name, graph) => this.#program(name, graph),
      blockTensors: (block) => this.#blockTensors(block),
      weight: (name) => ({ data: this.#parameter(name).w, dims: this.#parameter(name).spec.shape }),
    };
  }

  /** A copy of `count` elements of one tensor's weights or moments from `start` on. */
  read({
    tensor,
    part,
    start,
    count,
  }: {
    tensor: string;
    part: TensorPart;
    start: number;
    count: number;
  }): Float32Array {
    return this.#parameter(tensor)[part].slice(start, start + count);
  }

  /** The stage's tensors, in table order. */
  tensors(): TensorSpec[] {
    return [...this.#parameters.values()].map(({ spec }) => spec);
  }

  /** The gradient of a tensor between `finish` and `update`; for tests that compare with a reference. */
  gradient(tensor: string): Float32Array {
    const { g } = this.#parameter(tensor);
    assert(g !== null, `${tensor} has no gradient`);
    return g;
  }

  async close(): Promise<void> {
    for (const program of this.#programs.values()) await (await program).release();
    this.#programs.clear();
    this.#parameters.clear();
    this.#snapshot = null;
    this.reset();
  }
}

const TENSOR_PARTS = ['w', 'm', 'v'] as const;
const NORM_TENSORS = ['ln_1.weight', 'ln_1.bias', 'ln_2.weight', 'ln_2.bias'] as const;
const BACKWARD_TENSORS = [
  'ln_1.weight',
  'attn.c_attn.weight',
  'attn.c_proj.weight',
  'ln_2.weight',
  'mlp.c_fc.weight',
  'mlp.c_proj.weight',
] as const;

/** In double precision, four sums side by side in a fixed order. */
function sumOfSquares(values: Float32Array): number {
  let [a, b, c, d] = [0, 0, 0, 0];
  const whole = values.length - (values.length % 4);
  for (let i = 0; i < whole; i += 4) {
    a += values[i] * values[i];
    b += values[i + 1] * values[i + 1];
    c += values[i + 2] * values[i + 2];
    d += values[i + 3] * values[i + 3];
  }
  for (let i = whole; i < values.length; i++) a += values[i] * values[i];
  return a + b + (c + d);
}
