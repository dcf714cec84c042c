// What one worker thread holds of a model in training: the tensors of its blocks with gradients and AdamW's moments, and the
// activations of the micro-batches in flight. Every sum runs in micro-batch order, so its bits do not depend on how the
// stages interleave. The pipeline decides what runs when; this file never does. Letters: B, T, D as in the model.

import { adamwProgram } from '../../model/programs/adamw.ts';
import {
  backwardTensorNames,
  blockBackwardProgram,
  blockForwardProgram,
  blockWeightGradientsProgram,
  BLOCK_ROW_GRADIENTS,
  blockRowWidths,
  normTensorNames,
  type BatchShape,
  type BlockRowName,
} from '../../model/programs/block.ts';
import { dropoutInPlace, embed, embedBackward } from '../../model/programs/embedding.ts';
import { assert } from '../../model/errors.ts';
import type { Graph } from '../../model/programs/graph.ts';
import { headTensorNames, headThreads } from '../../model/programs/head.ts';
import {
  blockTable,
  blockTensorName,
  ownsTensor,
  tensorTable,
  type BlockTensorName,
  type TensorSpec,
} from '../../model/tensors.ts';
import { ArrayPool } from '../memory/reuse.ts';
import type { CompileOptions, Engine, Program, Tensor, Tensors } from '../engines/engine.ts';
import { FusedProgram } from '../engines/fused-program.ts';
import { gradientUnits, type MicroBatch, type GradientUnit, type GradientLoan, type TrainSetup } from './messages.ts';
import type { DecodingStage } from './decode.ts';
import type { TensorPart } from '../store/messages.ts';
import { blockMasks, embeddingMask, maskTensors } from './masks.ts';
import type { Flight } from './flight.ts';
import { headLosses, headGradients, trainHead, type HeadStage } from './head.ts';
import { gradientTensors, sumOfSquares, type Parameter } from './parameters.ts';
import { TrainOptimizer } from './optimizer.ts';

/** Fills `into` with a tensor's weights or moments. */
type LoadTensor = (spec: TensorSpec, part: TensorPart, into: Float32Array) => void;

/**
 * The threads of the first micro-batch's forward pass. Two threads divide the columns of a product that has more columns than
 * rows. The engine sums in another order where a thread has up to 64 columns: in models below the minimal width the bits would
 * differ.
 */
const FIRST_THREADS = 2;
const FIRST_WIDTH_MIN = 256;

export class TrainStage {
  readonly #engine: Engine;
  readonly #setup: TrainSetup;
  readonly #batch: BatchShape;
  readonly #tokens: Uint16Array | Uint32Array;
  readonly #blockTable: ReadonlyMap<BlockTensorName, TensorSpec>;
  readonly #rowWidths: Readonly<Record<BlockRowName, number>>;
  readonly #backwardTensors: readonly BlockTensorName[];
  readonly #normTensors: readonly BlockTensorName[];
  readonly #headThreads: number;
  readonly #parameters = new Map<string, Parameter>();
  readonly #programs = new Map<string, Promise<Program>>();
  readonly #arrays = new ArrayPool();
  readonly #flights = new Map<number, Flight>();
  /** Holds the dx of each micro-batch at the embeddings. `finish` adds them to the tables' gradients in order. */
  readonly #embeddingGradients = new Map<number, { ids: Uint32Array; dx: Float32Array }>();
  /** Holds the rows of the embeddings' tables whose gradients are not zero. */
  #touched: { readonly wte: Set<number>; readonly wpe: Set<number> } = { wte: new Set(), wpe: new Set() };
  /** Counts, by unit, the micro-batches whose weight gradients have been added. */
  readonly #added = new Map<GradientUnit, number>();
  /** Does what follows the backward pass. */
  readonly optimizer: TrainOptimizer;

  constructor(engine: Engine, setup: TrainSetup, load: LoadTensor) {
    this.#engine = engine;
    this.#setup = setup;
    this.#batch = { B: setup.microBatchSize, T: setup.contextLength };
    this.#tokens = setup.wideTokens ? new Uint32Array(setup.tokens) : new Uint16Array(setup.tokens);
    this.#blockTable = blockTable(setup.config);
    this.#rowWidths = blockRowWidths(setup.config);
    this.#headThreads = headThreads(setup.config);
    this.#backwardTensors = backwardTensorNames(setup.config);
    this.#normTensors = normTensorNames(setup.config);
    const specs = tensorTable(setup.config).filter((spec) => ownsTensor(setup.stage, spec));
    const adamw = new FusedProgram(adamwProgram());
    const memory = adamw.allocate(specs.map(({ size, trained }) => (trained ? [size, size, size] : [size])));
    for (const [i, spec] of specs.entries()) {
      const [w, m = new Float32Array(0), v = new Float32Array(0)] = memory[i];
      const arrays = { w, m, v };
      for (const part of setup.optimizerState && spec.trained ? (['w', 'm', 'v'] as const) : (['w'] as const)) {
        load(spec, part, arrays[part]);
      }
      const g = new Float32Array(spec.trained ? spec.size : 0);
      const state = { hasMoments: setup.optimizerState, begun: false, sumOfSquares: null };
      this.#parameters.set(spec.name, { spec, ...arrays, g, ...state });
    }
    this.optimizer = new TrainOptimizer(this.#parameters, adamw);
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

  /** Returns the parameters of a block by the names of its programs' inputs. */
  #blockParameters(block: number): Record<string, Parameter> {
    const names = [...this.#blockTable.keys()];
    return Object.fromEntries(names.map((name) => [name, this.#parameter(blockTensorName(block, name))]));
  }

  #blockTensors(block: number): Record<string, Tensor> {
    const parameters = Object.entries(this.#blockParameters(block));
    return Object.fromEntries(parameters.map(([name, { w, spec }]) => [name, { data: w, dims: spec.shape }]));
  }

  #rows(data: Float32Array): Tensor {
    const rowCount = this.#batch.B * this.#batch.T;
    return { data, dims: [rowCount, data.length / rowCount] };
  }

  /** Takes an array from the pool for each of the named rows. */
  #takeRows<Name extends BlockRowName>(names: readonly Name[]): Record<Name, Float32Array> {
    const rowCount = this.#batch.B * this.#batch.T;
    const arrays = names.map((name) => [name, this.#arrays.take(rowCount * this.#rowWidths[name])]);
    return Object.fromEntries(arrays) as Record<Name, Float32Array>;
  }

  #rowTensors(arrays: Readonly<Record<string, Float32Array>>): Tensors {
    return Object.fromEntries(Object.entries(arrays).map(([name, data]) => [name, this.#rows(data)]));
  }

  #probabilities(data: Float32Array): Tensor {
    const { B, T } = this.#batch;
    return { data, dims: [B, this.#setup.config.n_heads, T, T] };
  }

  /** Returns the token ids of a micro-batch's windows (B*T): the inputs for `shift` 0 and the targets for 1. */
  #ids({ starts }: MicroBatch, shift: 0 | 1): Uint32Array {
    const { T } = this.#batch;
    const ids = new Uint32Array(starts.length * T);
    for (const [row, start] of starts.entries()) {
      for (let t = 0; t < T; t++) ids[row * T + t] = this.#tokens[start + shift + t]!;
    }
    return ids;
  }

  /** Returns x (B*T, D) of a micro-batch, after the embeddings' dropout when `train`. */
  embed(micro: MicroBatch, { train }: { train: boolean }): Float32Array {
    const { config } = this.#setup;
    const D = config.emb_dim;
    const tables = { wte: this.#parameter('wte.weight').w, wpe: this.#parameter('wpe.weight').w, D };
    const ids = this.#ids(micro, 0);
    const x = embed(ids, tables, { T: this.#batch.T, x: this.#arrays.take(ids.length * D) });
    if (train && config.drop_rate > 0) dropoutInPlace(x, embeddingMask(this.#setup, micro), config.drop_rate);
    return x;
  }

  /** x (B*T, D) -> y (B*T, D); the stage with the head goes on to the loss of each row (B*T) and its backward pass. */
  async forward(micro: MicroBatch, x: Float32Array): Promise<{ y: Float32Array | null; losses: Float32Array | null }> {
    const { config, stage } = this.#setup;
    // Apart from the rest of an update, later stages have nothing to do until a step's first micro-batch reaches them.
    const isWaitedFor = micro.index === 0 && !stage.head;
    const threadCount = isWaitedFor && config.emb_dim >= FIRST_WIDTH_MIN ? FIRST_THREADS : 1;
    const program = await this.#program(
      `forward on ${threadCount}`,
      () => blockForwardProgram(config, this.#batch, { save: true }),
      { threadCount },
    );
    const flight: Flight = { unitsLeft: gradientUnits(stage).length, blocks: [], head: null, dx: null };
    const { B, T } = this.#batch;
    for (let block = stage.firstBlock; block < stage.endBlock; block++) {
      const masks = blockMasks(this.#setup, { micro, block });
      const rows = this.#takeRows(['qkv', 'context', 'a', 'u']);
      const probabilities = this.#arrays.take(B * config.n_heads * T * T);
      const y = this.#arrays.take(x.length);
      await program.run(
        { x: this.#rows(x), ...this.#blockTensors(block), ...maskTensors(this.#setup, masks) },
        { y: this.#rows(y), probabilities: this.#probabilities(probabilities), ...this.#rowTensors(rows) },
      );
      flight.blocks.push({ x, saved: { ...rows, probabilities }, masks, gradients: null });
      x = y;
    }
    this.#flights.set(micro.index, flight);
    if (!stage.head) return { y: x, losses: null };
    const { losses, dx, saved } = await trainHead(this.#head(micro), x);
    flight.head = { x, saved };
    flight.dx = dx;
    return { y: null, losses };
  }

  /** dy (B*T, D) of the stage's last block, or null when this stage's head has computed it -> dx (B*T, D) of its first block. */
  async backward(micro: MicroBatch, dy: Float32Array | null): Promise<Float32Array> {
    const { config, stage } = this.#setup;
    const flight = this.#flights.get(micro.index);
    assert(flight !== undefined, `micro-batch ${micro.index} has not been forward through this stage`);
    const program = await this.#program('backward', () => blockBackwardProgram(config, this.#batch));
    let gradient = dy ?? flight.dx;
    assert(gradient !== null, 'backward without a gradient');
    const names = BLOCK_ROW_GRADIENTS.filter((name) => name !== 'dFed' || config.drop_rate > 0);
    for (let block = stage.endBlock - 1; block >= stage.firstBlock; block--) {
      const at = flight.blocks[block - stage.firstBlock];
      const { probabilities, qkv, context, a, u } = at.saved;
      const tensors = this.#blockTensors(block);
      const rows = this.#takeRows(names);
      const dx = this.#arrays.take(gradient.length);
      await program.run(
        {
          ...this.#rowTensors({ dy: gradient, x: at.x, qkv, context, a, u }),
          probabilities: this.#probabilities(probabilities),
          ...Object.fromEntries(this.#backwardTensors.map((name) => [name, tensors[name]])),
          ...maskTensors(this.#setup, at.masks),
        },
        this.#rowTensors({ dx, ...rows }),
      );
      for (const array of [probabilities, qkv]) this.#arrays.give(array);
      at.gradients = { dy: gradient, ...rows };
      gradient = dx;
    }
    return gradient;
  }

  /** Adds the weight gradients of a micro-batch for all blocks of the stage and its head. */
  async allWeightGradients(micro: MicroBatch): Promise<void> {
    for (const unit of gradientUnits(this.#setup.stage)) await this.weightGradients(micro, unit);
  }

  /** Adds the weight gradients of a micro-batch for one unit. Micro-batches come in order. */
  async weightGradients(micro: MicroBatch, unit: GradientUnit): Promise<void> {
    if (unit !== 'head') {
      this.takeBack(unit, await this.lentWeightGradients(this.#loan(micro, unit)));
      return;
    }
    const { head } = this.#takeUp(micro, unit);
    assert(head !== null, 'this stage has no head');
    await headGradients(this.#head(micro), head);
    if (!this.#isLast(micro)) return;
    for (const name of headTensorNames(this.#setup.config)) {
      const parameter = this.#parameter(name);
      parameter.sumOfSquares = sumOfSquares(parameter.g);
    }
  }

  /** Returns what another stage needs to compute a block's weight gradients of a micro-batch. `takeBack` ends the loan. */
  lend(micro: MicroBatch, block: number): GradientLoan {
    const loan = this.#loan(micro, block);
    return { ...loan, norms: loan.norms.map(({ name, bytes }) => ({ name, bytes: bytes.slice() })) };
  }

  #loan(micro: MicroBatch, block: number): GradientLoan {
    const { blocks } = this.#takeUp(micro, block);
    const { x, saved, gradients } = blocks[block - this.#setup.stage.firstBlock];
    const { context, a, u } = saved;
    const named = (arrays: Readonly<Record<string, Float32Array>>): GradientLoan['rows'] =>
      Object.entries(arrays).map(([name, bytes]) => ({ name, bytes }));
    const parameters = this.#blockParameters(block);
    const trained = Object.entries(parameters).filter(([, { spec }]) => spec.trained);
    return {
      accumulate: micro.index > 0,
      last: this.#isLast(micro),
      rows: named({ x, context, a, u, ...gradients! }),
      norms: this.#normTensors.map((name) => ({ name, bytes: parameters[name].w })),
      gradients: trained.map(([name, { g }]) => ({ name, bytes: g, sumOfSquares: null })),
    };
  }

  /**
   * Adds a micro-batch's weight gradients to those of a block that this or another stage owns. Returns the loan with its results.
   */
  async lentWeightGradients(loan: GradientLoan): Promise<GradientLoan> {
    const { config } = this.#setup;
    const { accumulate, last, rows, norms, gradients } = loan;
    const program = await this.#program(`weight gradients ${accumulate ? 'next' : 'first'}`, () =>
      blockWeightGradientsProgram(config, this.#batch, { accumulate }),
    );
    const shapeOf = (name: string): readonly number[] => this.#blockTable.get(name as BlockTensorName)!.shape;
    const { dy, dFed = dy, ...named } = Object.fromEntries(rows.map(({ name, bytes }) => [name, bytes]));
    const own = gradients.map(({ name, bytes }) => ({ name, g: bytes, shape: shapeOf(name) }));
    await program.run(
      {
        ...this.#rowTensors({ ...named, dFed }),
        ...Object.fromEntries(norms.map(({ name, bytes }) => [name, { data: bytes, dims: shapeOf(name) }])),
        ...(accumulate ? gradientTensors(own, 'soFar') : {}),
      },
      gradientTensors(own, 'gradient'),
    );
    if (!last) return loan;
    const summed = gradients.map((gradient) => ({ ...gradient, sumOfSquares: sumOfSquares(gradient.bytes) }));
    return { ...loan, gradients: summed };
  }

  /** Takes the gradients of a loan over, and gives its rows back to the pool. */
  takeBack(block: number, { rows, gradients }: GradientLoan): void {
    const parameters = this.#blockParameters(block);
    for (const { name, bytes, sumOfSquares } of gradients) {
      Object.assign(parameters[name], { g: bytes, sumOfSquares, begun: true });
    }
    for (const { bytes } of rows) this.#arrays.give(bytes);
  }

  /** Counts one unit of a micro-batch as added, and forgets the micro-batch after its last unit. */
  #takeUp(micro: MicroBatch, unit: GradientUnit): Flight {
    const flight = this.#flights.get(micro.index);
    assert(flight !== undefined, `micro-batch ${micro.index} is not in flight`);
    const done = this.#added.get(unit) ?? 0;
    assert(done === micro.index, `weight gradients of micro-batch ${micro.index} are out of order`);
    this.#added.set(unit, done + 1);
    flight.unitsLeft -= 1;
    if (flight.unitsLeft === 0) this.#flights.delete(micro.index);
    return flight;
  }

  #isLast({ index }: MicroBatch): boolean {
    return (index + 1) * this.#setup.microBatchSize === this.#setup.batchSize;
  }

  /** Keeps dx (B*T, D) at the embeddings' output for `finish`, and takes the array over. */
  embedBackward(micro: MicroBatch, dx: Float32Array): void {
    const rate = this.#setup.config.drop_rate;
    if (rate > 0) dropoutInPlace(dx, embeddingMask(this.#setup, micro), rate);
    this.#embeddingGradients.set(micro.index, { ids: this.#ids(micro, 0), dx });
  }

  /**
   * Ends the backward pass of a step: adds the embeddings' gradients, to a tied wte after the head's. Returns the sum of squares
   * of each trained tensor's gradient in double precision, in table order.
   */
  finish(): { tensor: string; sumOfSquares: number }[] {
    const { config, contextLength: T, stage } = this.#setup;
    const D = config.emb_dim;
    if (stage.embeds) {
      const [wte, wpe] = [this.#parameter('wte.weight'), this.#parameter('wpe.weight')];
      for (const [table, rows] of [[wte, this.#touched.wte] as const, [wpe, this.#touched.wpe] as const]) {
        if (!table.begun) for (const row of rows) table.g.fill(0, row * D, (row + 1) * D);
        rows.clear();
        Object.assign(table, { begun: true, sumOfSquares: null });
      }
      for (const [, { ids, dx }] of [...this.#embeddingGradients].sort(([a], [b]) => a - b)) {
        embedBackward(dx, ids, { dwte: wte.g, dwpe: wpe.g, D, T });
        for (const id of ids) this.#touched.wte.add(id);
        this.#arrays.give(dx);
      }
      for (let position = 0; position < T; position++) this.#touched.wpe.add(position);
      this.#embeddingGradients.clear();
    }
    this.#added.clear();
    const trained = [...this.#parameters.values()].filter(({ spec }) => spec.trained);
    return trained.map(({ spec, g, begun, sumOfSquares: known }) => {
      assert(begun, `${spec.name} has no gradient`);
      // All other rows of an untied token embedding are zero.
      const rows = spec.name === 'wte.weight' && !config.tie_weights ? this.#touched.wte : null;
      if (rows === null) return { tensor: spec.name, sumOfSquares: known ?? sumOfSquares(g) };
      const ascending = [...rows].sort((a, b) => a - b).map((row) => g.subarray(row * D, (row + 1) * D));
      return { tensor: spec.name, sumOfSquares: ascending.reduce((sum, row) => sum + sumOfSquares(row), 0) };
    });
  }

  /** Drops a step that was begun and not finished. */
  reset(): void {
    this.#flights.clear();
    this.#embeddingGradients.clear();
    this.#added.clear();
    for (const parameter of this.#parameters.values()) {
      Object.assign(parameter, { begun: false, sumOfSquares: null });
      // The gradient was lent to a stage that did not give it back.
      if (parameter.spec.trained && parameter.g.length === 0) parameter.g = new Float32Array(parameter.spec.size);
    }
  }

  /** x (B*T, D) -> y (B*T, D), or the loss of each row (B*T) on the stage with the head. Nothing is dropped out or kept. */
  async evaluate(micro: MicroBatch, x: Float32Array): Promise<{ y: Float32Array | null; losses: Float32Array | null }> {
    const { config, stage } = this.#setup;
    const program = await this.#program('evaluate', () => blockForwardProgram(config, this.#batch, { save: false }));
    for (let block = stage.firstBlock; block < stage.endBlock; block++) {
      const y = this.#arrays.take(x.length);
      await program.run({ x: this.#rows(x), ...this.#blockTensors(block) }, { y: this.#rows(y) });
      this.#arrays.give(x);
      x = y;
    }
    if (!stage.head) return { y: x, losses: null };
    const losses = await headLosses(this.#head(micro), x);
    this.#arrays.give(x);
    return { y: null, losses };
  }

  /** What training/head.ts works with. */
  #head(micro: MicroBatch): HeadStage {
    return {
      setup: this.#setup,
      threadCount: this.#headThreads,
      accumulate: micro.index > 0,
      arrays: this.#arrays,
      targets: this.#ids(micro, 1),
      program: (name, graph, options) => this.#program(name, graph, options),
      parameter: (name) => this.#parameter(name),
    };
  }

  /** What training/decode.ts works with, between two steps. */
  decoding(): DecodingStage {
    return {
      config: this.#setup.config,
      range: this.#setup.stage,
      program: (name, graph) => this.#program(name, graph),
      blockTensors: (block) => this.#blockTensors(block),
      weight: (name) => ({ data: this.#parameter(name).w, dims: this.#parameter(name).spec.shape }),
    };
  }

  /** The stage's own parameters by their names, in table order; for tests. */
  get parameters(): ReadonlyMap<string, Parameter> {
    return this.#parameters;
  }

  /** Returns the gradient of a tensor between `finish` and `update`; for tests that compare it with a reference. */
  gradient(tensor: string): Float32Array {
    const { g, begun } = this.#parameter(tensor);
    assert(begun, `${tensor} has no gradient`);
    return g;
  }

  async close(): Promise<void> {
    for (const program of this.#programs.values()) await (await program).release();
    this.#programs.clear();
    this.#parameters.clear();
    this.optimizer.endSnapshot();
    this.#arrays.clear();
    this.reset();
  }
}
