// What one worker thread holds of a model that generates: its blocks' compiled programs, and the keys and values of every
// sequence for these blocks. A step takes rows of any number of sequences. A row's bits depend neither on the rows beside it nor
// on the capacity of its cache, so a token computed in a prompt equals the same token computed alone.
// Letters: M rows, D, H, P capacity, V as in the programs.

import type { GptConfig } from '../model/config.ts';
import { embedAt } from '../model/embedding.ts';
import { assert, GptdError } from '../model/errors.ts';
import type { Quantization } from '../model/quantize.ts';
import { logitRows, logprobOf, type LogitRow } from '../model/sampling.ts';
import {
  ATTEND_ROWS_MAX,
  ATTEND_ROWS_MIN,
  attendProgram,
  feedProgram,
  logitsProgram,
  qkvProgram,
  SERVING_THREADS,
  type Weights,
} from '../model/serving.ts';
import type { Tokenizer } from '../model/tokenizer.ts';
import type { Engine, Program, Tensor } from './engine.ts';
import { KvCache } from './kv-cache.ts';
import type { SampledRows, ServePart, StageCalls, StageRange } from './messages.ts';
import { SequenceOutput } from './sequence-output.ts';

/** Rows have the same bits on any number of threads. Narrow models are done before a second thread is awake. */
const threadsFor = ({ emb_dim: D }: GptConfig): { threadCount: number } => ({
  threadCount: D < 512 ? 1 : SERVING_THREADS,
});

/** Groups of query rows that one run of attention takes, at the most: programs are compiled when they are first needed. */
const ATTEND_GROUPS_MAX = 8;

/** Query rows of one sequence over its cache, the same in every block of a step. */
interface AttendGroup {
  readonly cache: KvCache;
  /** First of the step's rows, and how many of them. */
  readonly first: number;
  readonly count: number;
  /** (R, P) for R query rows: `count`, or two when it is one. */
  readonly mask: Tensor;
}

export interface ServeSetup {
  readonly config: GptConfig;
  readonly stage: StageRange;
  readonly tokenizer: Tokenizer | null;
  readonly quantization: Quantization | null;
}

export class ServeStage {
  readonly #setup: ServeSetup;
  readonly #engine: Engine;
  /** The first block's qkv; each block's feed computes the qkv of the next one. */
  #qkv: Program | null = null;
  readonly #feeds: Program[] = [];
  readonly #attends = new Map<number, Program>();
  #logits: Program | null = null;
  /** The newest step's logits: V for each row that samples, grown to the most that a step has had. */
  #logitData = new Float32Array(0);
  #embeddings: { wte: Float32Array; wpe: Float32Array } | null = null;
  readonly #caches = new Map<string, KvCache>();
  /** Only on the head's stage. */
  readonly #outputs = new Map<string, SequenceOutput>();

  private constructor(engine: Engine, setup: ServeSetup) {
    this.#engine = engine;
    this.#setup = setup;
  }

  /** Compiles the stage's programs. What `weights` gives is compiled in, and not kept but for the embeddings. */
  static async load(engine: Engine, setup: ServeSetup, weights: Weights): Promise<ServeStage> {
    const self = new ServeStage(engine, setup);
    try {
      await self.#compile(weights);
    } catch (error) {
      await self.close();
      throw error;
    }
    return self;
  }

  async #compile(weights: Weights): Promise<void> {
    const { config, stage, quantization } = this.#setup;
    const threads = threadsFor(config);
    const { firstBlock, endBlock } = stage;
    this.#qkv = await this.#engine.compile(qkvProgram(config, weights, { block: firstBlock, quantization }), threads);
    for (let block = firstBlock; block < endBlock; block++) {
      const next = block + 1 < endBlock;
      this.#feeds.push(
        await this.#engine.compile(feedProgram(config, weights, { block, next, quantization }), threads),
      );
    }
    if (stage.embeds) {
      this.#embeddings = { wte: weights.get('wte.weight')!, wpe: weights.get('wpe.weight')! };
    }
    if (stage.head) {
      this.#logits = await this.#engine.compile(logitsProgram(config, weights, { quantization }), threads);
    }
  }

  /** Opens a sequence on the head's stage: encodes the prompt and sets up its output. */
  begin(request: StageCalls['serveBegin'][0]): StageCalls['serveBegin'][1] {
    const { prompt, sequence } = request;
    const { tokenizer, config } = this.#setup;
    const ids = typeof prompt === 'string' ? this.#encode(prompt) : prompt;
    const V = config.vocab_size;
    const bad = ids.find((id) => id >= V);
    if (bad !== undefined) {
      throw new GptdError('invalid_spec', `The prompt has token ${bad}: the model's ids go from 0 to ${V - 1}.`);
    }
    const output = new SequenceOutput(request, ids, tokenizer);
    this.#outputs.set(sequence, output);
    return { ids, stopped: output.stopped };
  }

  #encode(prompt: string): readonly number[] {
    const { tokenizer } = this.#setup;
    if (tokenizer === null) {
      throw new GptdError('invalid_spec', 'This model has no tokenizer: give the prompt as token ids (--prompt-ids).');
    }
    return Array.from(tokenizer.encode(prompt));
  }

  /** wte[id] + wpe[position] for the rows of a step: (M, D). */
  embed(ids: readonly number[], parts: readonly ServePart[]): Float32Array {
    const { emb_dim: D } = this.#setup.config;
    assert(this.#embeddings !== null, 'this stage does not embed');
    const positions = parts.flatMap(({ position, rowCount }) =>
      Array.from({ length: rowCount }, (_, i) => position + i),
    );
    return embedAt(ids, positions, { ...this.#embeddings, D });
  }

  /** Runs rows through the stage's blocks; see StageCalls.serveStep. */
  async step({
    input,
    parts,
    targets = [],
  }: Omit<StageCalls['serveStep'][0], 'lease'>): Promise<StageCalls['serveStep'][1]> {
    const { emb_dim: D } = this.#setup.config;
    let x = input instanceof Float32Array ? input : this.embed(input, parts);
    const dims = [x.length / D, D];
    const groups = this.#attendGroups(parts);
    const rows = { data: BigInt64Array.from({ length: dims[0] }, (_, row) => BigInt(row)), dims: [dims[0]] };
    let { qkv } = await this.#qkv!.run({ x: { data: x, dims } });
    for (const [block, feed] of this.#feeds.entries()) {
      for (const { cache, first, count, position } of this.#cached(parts)) {
        cache.write(block, qkv, { first, count, position });
      }
      // The last group attends in the program that goes on with what all have attended to: a lone sequence needs no other.
      const last = groups.at(-1)!;
      const context = await this.#attend(groups.slice(0, -1), { block, qkv, rowCount: last.first });
      const fed = await feed.run({
        ...{ x: { data: x, dims }, rows, context: { data: context, dims: [last.first, D] } },
        ...this.#attention(last, { block, qkv, suffix: '' }),
      });
      x = fed['y'];
      qkv = fed['qkv'];
    }
    if (!this.#setup.stage.head) return { x, sampled: null, losses: null };
    return { x: null, sampled: await this.#sample(x, parts), losses: await this.#losses(x, targets) };
  }

  /** The parts with their caches, which have room for the parts' rows. */
  *#cached(
    parts: readonly ServePart[],
  ): Generator<{ cache: KvCache; part: ServePart; first: number; count: number; position: number }> {
    let first = 0;
    for (const part of parts) {
      const { rowCount: count, position } = part;
      yield { cache: this.#caches.get(part.sequence)!, part, first, count, position };
      first += count;
    }
  }

  /** Makes room in the caches, and says which rows attend together. */
  #attendGroups(parts: readonly ServePart[]): AttendGroup[] {
    const { config, stage } = this.#setup;
    const shape = { D: config.emb_dim, H: config.n_heads, blockCount: stage.endBlock - stage.firstBlock };
    for (const { sequence, fork, position, rowCount } of parts) {
      const cache = this.#caches.get(sequence) ?? new KvCache(shape);
      this.#caches.set(sequence, cache);
      if (fork !== null) cache.fork(this.#caches.get(fork.from)!, fork.length);
      cache.reserve(position + rowCount);
    }
    const groups: AttendGroup[] = [];
    for (const { cache, first, count, position } of this.#cached(parts)) {
      for (let row = 0; row < count; row += ATTEND_ROWS_MAX) {
        const rows = Math.min(ATTEND_ROWS_MAX, count - row);
        const mask = attentionMask(rows, { position: position + row, P: cache.capacity });
        groups.push({ cache, first: first + row, count: rows, mask });
      }
    }
    return groups;
  }

  /** qkv (M, 3D), whose keys and values are in the caches -> context (K, D) of the groups' K rows, which come first. */
  async #attend(
    groups: readonly AttendGroup[],
    { block, qkv, rowCount: K }: { block: number; qkv: Float32Array; rowCount: number },
  ): Promise<Float32Array> {
    const { emb_dim: D } = this.#setup.config;
    const context = new Float32Array(K * D);
    for (let done = 0; done < groups.length; done += ATTEND_GROUPS_MAX) {
      const together = groups.slice(done, done + ATTEND_GROUPS_MAX);
      const inputs = together.map((group, i) => this.#attention(group, { block, qkv, suffix: `_${i}` }));
      const program = await this.#attendProgram(together.length);
      const attended = await program.run(Object.assign({}, ...inputs) as Record<string, Tensor>);
      for (const [i, { first, count }] of together.entries()) {
        context.set(attended[`context_${i}`].subarray(0, count * D), first * D);
      }
    }
    return context;
  }

  /** One group's inputs of a program with attention. */
  #attention(
    { cache, first, count, mask }: AttendGroup,
    { block, qkv, suffix }: { block: number; qkv: Float32Array; suffix: string },
  ): Record<string, Tensor> {
    const { emb_dim: D, n_heads: H } = this.#setup.config;
    const [R, P] = mask.dims;
    const q = new Float32Array(R * D);
    // A lone row goes with a twin.
    for (let row = 0; row < R; row++) {
      const from = (first + Math.min(row, count - 1)) * 3 * D;
      q.set(qkv.subarray(from, from + D), row * D);
    }
    const { keys, values } = cache.block(block);
    return {
      [`q${suffix}`]: { data: q, dims: [R, D] },
      [`keys${suffix}`]: { data: keys, dims: [H, P, D / H] },
      [`values${suffix}`]: { data: values, dims: [H, D / H, P] },
      [`mask${suffix}`]: mask,
    };
  }

  async #attendProgram(groups: number): Promise<Program> {
    const { config } = this.#setup;
    let program = this.#attends.get(groups);
    if (program === undefined) {
      program = await this.#engine.compile(attendProgram(config, groups), threadsFor(config));
      this.#attends.set(groups, program);
    }
    return program;
  }

  /** One entry a part: null for a part that asks for no token. */
  async #sample(x: Float32Array, parts: readonly ServePart[]): Promise<(SampledRows | null)[]> {
    const wanted: number[] = [];
    for (const { part, first, count } of this.#cached(parts)) {
      const rows = part.sample === null ? 0 : part.sample.drafts.length + 1;
      for (let row = count - rows; row < count; row++) wanted.push(first + row);
    }
    const all = await this.#logitRows(x, wanted);
    let done = 0;
    return parts.map(({ sequence, sample }) => {
      if (sample === null) return null;
      const rows = all.slice(done, (done += sample.drafts.length + 1));
      const output = this.#outputs.get(sequence)!;
      const tokens = output.sample(rows, sample);
      return { tokens, draft: output.draft(sample.draftMax) };
    });
  }

  /** Of the last rows: how unlikely each finds its target. */
  async #losses(x: Float32Array, targets: readonly number[]): Promise<number[]> {
    const first = x.length / this.#setup.config.emb_dim - targets.length;
    const rows = targets.map((_, i) => first + i);
    return (await this.#logitRows(x, rows)).map((row, i) => -logprobOf(row, targets[i]));
  }

  /** What the head says of some rows of x (M, D), in that order; to be read until the next call. */
  async #logitRows(x: Float32Array, wanted: readonly number[]): Promise<LogitRow[]> {
    const { emb_dim: D, vocab_size: V } = this.#setup.config;
    const rowCount = wanted.length;
    if (rowCount === 0) return [];
    const rows = new Float32Array(rowCount * D);
    for (const [i, row] of wanted.entries()) rows.set(x.subarray(row * D, (row + 1) * D), i * D);
    if (this.#logitData.length < rowCount * V) this.#logitData = new Float32Array(rowCount * V);
    const outputs = {
      logits: { data: this.#logitData.subarray(0, rowCount * V), dims: [rowCount, V] },
      max: { data: new Float32Array(rowCount), dims: [rowCount, 1] },
      logSum: { data: new Float32Array(rowCount), dims: [rowCount, 1] },
    };
    await this.#logits!.run({ x: { data: rows, dims: [rowCount, D] } }, outputs);
    return logitRows({ logits: outputs.logits.data, max: outputs.max.data, logSum: outputs.logSum.data });
  }

  /** Frees sequences; unknown ones too. */
  end({ sequences, keepCaches }: Omit<StageCalls['serveEnd'][0], 'lease'>): void {
    for (const sequence of sequences) {
      this.#outputs.delete(sequence);
      if (!keepCaches) this.#caches.delete(sequence);
    }
  }

  async close(): Promise<void> {
    this.#caches.clear();
    this.#outputs.clear();
    const programs = [this.#qkv, this.#logits, ...this.#feeds.splice(0), ...this.#attends.values()];
    this.#attends.clear();
    [this.#qkv, this.#logits, this.#embeddings] = [null, null, null];
    for (const program of programs) await program?.release();
  }
}

/** (R, P) for `rows` rows from `position` on: each sees the positions up to its own; a twin sees what its row sees. */
function attentionMask(rows: number, { position, P }: { position: number; P: number }): Tensor {
  const R = Math.max(rows, ATTEND_ROWS_MIN);
  const data = new Float32Array(R * P);
  for (let row = 0; row < R; row++) {
    data.fill(-Infinity, row * P + position + Math.min(row, rows - 1) + 1, (row + 1) * P);
  }
  return { data, dims: [R, P] };
}
