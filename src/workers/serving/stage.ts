// What one worker thread holds of a model that generates: its blocks' compiled programs, and the keys and values of every
// sequence for these blocks. A step takes rows of any number of sequences. A row's bits depend neither on the rows beside it nor
// on the capacity of its cache, so a token computed in a prompt equals the same token computed alone.
// Letters: M rows, N sequences, R query rows, D, H, P, V as in the programs (model/programs/serving.ts).

import type { GptConfig } from '../../model/config.ts';
import { embedAt } from '../../model/programs/embedding.ts';
import { assert } from '../../model/errors.ts';
import type { Quantization } from '../../model/programs/quantize.ts';
import { logitRows, logprobOf, type LogitRow } from '../../model/sampling.ts';
import {
  askedOnce,
  attendProgram,
  attendsWide,
  feedProgram,
  logitsProgram,
  passCacheNames,
  passProgram,
  qkvProgram,
  SERVING_THREADS,
  passesAtOnce,
  wideAttendProgram,
  type Weights,
} from '../../model/programs/serving.ts';
import {
  attendGroups,
  cachePlaces,
  isWide,
  passage,
  queryRows,
  rowsOf,
  type AttendGroup,
  type Passage,
  type RowSpan,
} from './attend-groups.ts';
import type { Engine, Program, Tensor } from '../engines/engine.ts';
import { CacheRoom, KvCache } from './kv-cache.ts';
import type { FollowRequest, SampledRows, ServeFollow, ServeShare } from './messages.ts';
import type { StageCalls } from '../stage-messages.ts';
import type { StageRange } from '../training/messages.ts';
import { Scratch } from '../memory/reuse.ts';
import { SequenceOutput } from './sequence-output.ts';

/** Rows have the same bits on any number of threads. A narrow model's programs end before a second thread is awake. */
const threadsFor = ({ emb_dim: D }: GptConfig): { threadCount: number } => ({
  threadCount: D < 512 ? 1 : SERVING_THREADS,
});

/**
 * One run of attention takes this many groups at the most. The program for each number of groups is compiled when first needed.
 */
const ATTEND_GROUPS_MAX = 8;

export interface ServeSetup {
  readonly config: GptConfig;
  readonly stage: StageRange;
  readonly quantization: Quantization | null;
}

export class ServeStage {
  readonly #setup: ServeSetup;
  readonly #engine: Engine;
  /** Computes the first block's qkv; each block's feed program computes the qkv of the next block. */
  #qkv: Program | null = null;
  readonly #feeds: Program[] = [];
  /** Holds programs by their number of groups. 'wide' takes one wide group, 'begun' one that sees only the first positions. */
  readonly #attends = new Map<number | 'wide' | 'begun', Program>();
  #logits: Program | null = null;
  /**
   * Does all of this in one run, for rows that attend in one group; null where a second copy of the weights would be too large.
   */
  #pass: Program | null = null;
  /** Holds what the programs of the newest step have written. */
  readonly #scratch = new Scratch();
  #embeddings: { wte: Float32Array; wpe: Float32Array } | null = null;
  readonly #room: CacheRoom;
  readonly #caches = new Map<string, KvCache>();
  /** Holds what the head knows of each sequence; empty on a stage without the head. */
  readonly #outputs = new Map<string, SequenceOutput>();

  private constructor(engine: Engine, setup: ServeSetup) {
    this.#engine = engine;
    this.#setup = setup;
    const { config, stage } = setup;
    const blockCount = stage.endBlock - stage.firstBlock;
    this.#room = new CacheRoom({ D: config.emb_dim, H: config.n_heads, blockCount });
  }

  /** Compiles the stage's programs. The weights are compiled into them; only the embeddings are kept beside. */
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

  async #compile(given: Weights): Promise<void> {
    const { config, stage, quantization } = this.#setup;
    const threads = threadsFor(config);
    const { firstBlock, endBlock } = stage;
    const twice = this.#engine.writesInPlace && passesAtOnce(config, quantization);
    const weights = twice ? askedOnce(given) : given;
    // It comes first, as it takes the most memory until it is compiled.
    if (twice) {
      const pass = passProgram(config, weights, { firstBlock, endBlock, head: stage.head, quantization });
      this.#pass = await this.#engine.compile(pass, threads);
    }
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

  /** Returns (M, D): wte[id] + wpe[position] for the rows of a step. */
  embed(ids: readonly number[], shares: readonly ServeShare[]): Float32Array {
    const { emb_dim: D } = this.#setup.config;
    assert(this.#embeddings !== null, 'this stage does not embed');
    const positions = shares.flatMap(({ position, rowCount }) =>
      Array.from({ length: rowCount }, (_, i) => position + i),
    );
    return embedAt(ids, positions, { ...this.#embeddings, D });
  }

  /** Runs rows through the stage's blocks; see StageCalls.serveStep. */
  async step({
    input,
    shares,
    begins = [],
    targets = [],
  }: Omit<StageCalls['serveStep'][0], 'lease'>): Promise<StageCalls['serveStep'][1]> {
    const { emb_dim: D } = this.#setup.config;
    const { head } = this.#setup.stage;
    const given = input instanceof Float32Array ? input : this.embed(input, shares);
    const rowCount = given.length / D;
    this.#reserve(shares);
    for (const begin of begins) this.#outputs.set(begin.sequence, new SequenceOutput(begin));
    const groups = attendGroups([...this.#cached(shares)], { wide: attendsWide(this.#setup.config) });
    const all = passage(this.#paired(Array.from({ length: rowCount }, (_, row) => row)), groups);
    const headRows = head ? this.#headRows(shares, { rowCount, judged: targets.length }) : all.rows.slice(0, rowCount);
    const ending = headRows.length === rowCount ? all : passage(this.#paired(headRows), groups);
    const x = all.rows.length === rowCount ? given : gatherRows(given, all.rows, { D });
    const isOneGroup = ending === all && groups.length === 1 && !isWide(groups[0]);
    const passed =
      isOneGroup && this.#pass !== null
        ? await this.#runPass(this.#pass, x, all)
        : await this.#runBlocks(x, { shares, all, ending });
    if (!head) return { x: passed.x!.subarray(0, given.length), sampled: null, losses: null };
    const at = new Map(headRows.map((row, i) => [row, passed.told[i]]));
    return { x: null, sampled: this.#sample(at, shares), losses: losses(at, { targets, rowCount }) };
  }

  /** Runs rows x (M, D) through one block after the other. `ending` has the rows that are needed after the last block. */
  async #runBlocks(
    x: Float32Array,
    { shares, all, ending }: { shares: readonly ServeShare[]; all: Passage; ending: Passage },
  ): Promise<Passed> {
    const { emb_dim: D } = this.#setup.config;
    const { head } = this.#setup.stage;
    const qkv = this.#scratch.take('qkv', 3 * x.length);
    const qkvInto = { qkv: { data: qkv, dims: [x.length / D, 3 * D] } };
    await this.#qkv!.run({ x: { data: x, dims: [x.length / D, D] } }, qkvInto);
    for (const [block, feed] of this.#feeds.entries()) {
      for (const { cache, first, count, position } of this.#cached(shares)) {
        cache.write(block, qkv, { first, count, position });
      }
      // The last block goes on only with rows that are needed after it: of the others only its keys and values will be read.
      const last = block === this.#feeds.length - 1;
      const passing = last ? ending : all;
      x = passing === all ? x : gatherRows(x, passing.rows, { D });
      if (x.length === 0) break;
      // The feed program attends for the last group and goes on with the rows of all groups, so a lone sequence needs no other
      // run.
      const context = await this.#attend(passing.groups.slice(0, -1), { block, qkv });
      const dims = [x.length / D, D];
      // What goes to the next stage leaves this thread with its buffer, so it is a new array.
      const y = last && !head ? new Float32Array(x.length) : this.#scratch.take(`y${block % 2}`, x.length);
      await feed.run(
        {
          x: { data: x, dims },
          rows: passing.attended,
          context: { data: context, dims: [context.length / D, D] },
          ...this.#attention(passing.groups.at(-1)!, { block, qkv, suffix: '' }),
        },
        { y: { data: y, dims }, ...(last ? {} : qkvInto) },
      );
      x = y;
    }
    return head ? { x: null, told: await this.#logitRows(x) } : { x, told: [] };
  }

  /** Runs rows x (M, D) of one group through all blocks, and the head where the stage has it, in one run. */
  async #runPass(pass: Program, x: Float32Array, { groups: [group], attended }: Passage): Promise<Passed> {
    const { emb_dim: D, n_heads: H } = this.#setup.config;
    const { slab, firstSeat, mask } = group;
    const [N, , , P] = mask.dims;
    const dims = [x.length / D, D];
    const caches: [before: string, written: string, Tensor][] = this.#feeds.flatMap((_, i) => {
      const { keys, values } = slab.seats(i, { first: firstSeat, count: N });
      const names = passCacheNames(i);
      return [
        [...names.keys, { data: keys, dims: [N, H, P, D / H] }],
        [...names.values, { data: values, dims: [N, H, D / H, P] }],
      ];
    });
    const outputs = this.#setup.stage.head
      ? this.#logitOutputs(x.length / D)
      : { y: { data: new Float32Array(x.length), dims } };
    await pass.run(
      {
        x: { data: x, dims },
        queries: queryRows(group),
        rows: attended,
        mask,
        ...cachePlaces(group, { H, W: D / H }),
        ...Object.fromEntries(caches.map(([before, , cache]) => [before, cache])),
      },
      { ...Object.fromEntries(caches.map(([, written, cache]) => [written, cache])), ...outputs },
    );
    return 'y' in outputs ? { x: outputs.y.data, told: [] } : { x: null, told: toldRows(outputs) };
  }

  /** Runs steps of sequences that go on by themselves; see FollowRequest. */
  async follow({
    follows,
    tokensMax,
    spanMs,
    interrupt,
    turn,
  }: Omit<FollowRequest, 'lease'>): Promise<StageCalls['serveFollow'][1]> {
    const endAt = performance.now() + spanMs;
    const steps: (SampledRows | null)[][] = [];
    let tokens = 0;
    const mayGoOn = (): boolean =>
      tokens < tokensMax && performance.now() < endAt && Atomics.load(interrupt, 0) === turn;
    do {
      const sampled = await this.#followOnce(follows);
      steps.push(sampled);
      tokens += Math.max(...sampled.map((rows) => rows?.tokens.length ?? 0));
    } while (mayGoOn() && follows.every((follow) => this.#goesOn(follow)));
    return { steps };
  }

  async #followOnce(follows: readonly ServeFollow[]): Promise<(SampledRows | null)[]> {
    const { context_length: context } = this.#setup.config;
    const going = follows.flatMap(({ sequence, left, lastIndex, draftMax, guessMax }) => {
      const next = this.#outputs.get(sequence)?.next ?? null;
      if (next === null) return [];
      const position = next.count - 1 - left;
      const room = Math.min(guessMax, context - position - 1, lastIndex - next.index);
      const drafts = next.drafts.slice(0, room);
      const sample = { index: next.index, lastIndex, drafts, draftMax };
      return [
        { ids: [next.id, ...drafts], share: { sequence, position, rowCount: 1 + drafts.length, fork: null, sample } },
      ];
    });
    const shares = going.map(({ share }) => share);
    const { sampled } =
      shares.length === 0 ? { sampled: [] } : await this.step({ input: going.flatMap(({ ids }) => ids), shares });
    const told = new Map(shares.map(({ sequence }, i) => [sequence, sampled![i]]));
    return follows.map(({ sequence }) => told.get(sequence) ?? null);
  }

  /** Whether the sequence has another token to sample, and a position for its newest one. */
  #goesOn({ sequence, left, lastIndex }: ServeFollow): boolean {
    const next = this.#outputs.get(sequence)?.next ?? null;
    return next !== null && next.index <= lastIndex && next.count - left <= this.#setup.config.context_length;
  }

  /** Quantized products take rows in pairs (see ServingBuilder.linear), so the last row of an odd number is doubled. */
  #paired(rows: readonly number[]): readonly number[] {
    const isOdd = rows.length % 2 === 1;
    return isOdd && this.#setup.quantization !== null ? [...rows, rows.at(-1)!] : rows;
  }

  /** Returns the rows of the step that the head looks at, in order: the rows that sample, and the last `judged` ones. */
  #headRows(shares: readonly ServeShare[], { rowCount, judged }: { rowCount: number; judged: number }): number[] {
    const wanted = new Set<number>();
    for (const { share, first, count } of this.#cached(shares)) {
      const sampling = share.sample === null ? 0 : share.sample.drafts.length + 1;
      for (let row = count - sampling; row < count; row++) wanted.add(first + row);
    }
    for (let row = rowCount - judged; row < rowCount; row++) wanted.add(row);
    return [...wanted].sort((a, b) => a - b);
  }

  /** Yields the shares with their caches, which have room for the shares' rows. */
  *#cached(shares: readonly ServeShare[]): Generator<RowSpan & { share: ServeShare }> {
    let first = 0;
    for (const share of shares) {
      const { rowCount: count, position } = share;
      yield { cache: this.#caches.get(share.sequence)!, share, first, count, position };
      first += count;
    }
  }

  /** Makes room for the shares' rows in the caches, and copies the caches that sequences fork from. */
  #reserve(shares: readonly ServeShare[]): void {
    this.#room.expect(shares.length);
    this.#room.tidy();
    for (const { sequence, fork, position, rowCount } of shares) {
      const cache = this.#caches.get(sequence) ?? new KvCache(this.#room);
      this.#caches.set(sequence, cache);
      if (fork !== null) cache.fork(this.#caches.get(fork.from)!, fork.length);
      cache.reserve(position + rowCount);
    }
  }

  /** qkv (M, 3D), whose keys and values are in the caches -> context (K, D) of the K query rows, one group after the other. */
  async #attend(
    groups: readonly AttendGroup[],
    { block, qkv }: { block: number; qkv: Float32Array },
  ): Promise<Float32Array> {
    const { emb_dim: D } = this.#setup.config;
    const context = this.#scratch.take('context', rowsOf(groups) * D);
    let filled = 0;
    const into = (group: AttendGroup): Tensor => {
      const rows = rowsOf([group]);
      return { data: context.subarray(filled, (filled += rows * D)), dims: [rows, D] };
    };
    const wide = groups.filter(isWide);
    for (const group of wide) {
      const [positions, isWhole] = [group.mask.dims[3], group.mask.dims[3] === group.slab.capacity];
      const program = await this.#attendProgram(isWhole ? 'wide' : 'begun');
      const more = isWhole ? {} : { positions: { data: BigInt64Array.of(BigInt(positions)), dims: [1] } };
      const inputs = { ...this.#attention(group, { block, qkv, suffix: '' }), ...more };
      await program.run(inputs, { context: into(group) });
    }
    for (let done = wide.length; done < groups.length; done += ATTEND_GROUPS_MAX) {
      const together = groups.slice(done, done + ATTEND_GROUPS_MAX);
      const inputs = together.map((group, i) => this.#attention(group, { block, qkv, suffix: `_${i}` }));
      const program = await this.#attendProgram(together.length);
      const outputs = together.map((group, i) => [`context_${i}`, into(group)] as const);
      await program.run(Object.assign({}, ...inputs) as Record<string, Tensor>, Object.fromEntries(outputs));
    }
    return context;
  }

  /** Returns the inputs of a program with attention for one group. */
  #attention(
    { slab, firstSeat, spans, mask }: AttendGroup,
    { block, qkv, suffix }: { block: number; qkv: Float32Array; suffix: string },
  ): Record<string, Tensor> {
    const { emb_dim: D, n_heads: H } = this.#setup.config;
    const [N, , R] = mask.dims;
    const C = slab.capacity;
    const q = this.#scratch.take(`q${suffix}`, N * R * D);
    for (const [i, { first, count }] of spans.entries()) {
      // A missing row is a twin of the last one.
      for (let row = 0; row < R; row++) {
        const from = (first + Math.min(row, count - 1)) * 3 * D;
        q.set(qkv.subarray(from, from + D), (i * R + row) * D);
      }
    }
    const { keys, values } = slab.seats(block, { first: firstSeat, count: N });
    return {
      [`q${suffix}`]: { data: q, dims: [N, R, D] },
      [`keys${suffix}`]: { data: keys, dims: [N, H, C, D / H] },
      [`values${suffix}`]: { data: values, dims: [N, H, D / H, C] },
      [`mask${suffix}`]: mask,
    };
  }

  async #attendProgram(groups: number | 'wide' | 'begun'): Promise<Program> {
    const { config } = this.#setup;
    let program = this.#attends.get(groups);
    if (program === undefined) {
      const graph =
        typeof groups === 'number'
          ? attendProgram(config, groups)
          : wideAttendProgram(config, { whole: groups === 'wide' });
      program = await this.#engine.compile(graph, threadsFor(config));
      this.#attends.set(groups, program);
    }
    return program;
  }

  /** Returns an entry for each share: null for a share that asks for no token. `at` has the rows by their places in the step. */
  #sample(at: ReadonlyMap<number, LogitRow>, shares: readonly ServeShare[]): (SampledRows | null)[] {
    return Array.from(this.#cached(shares), ({ share: { sequence, sample }, first, count }) => {
      if (sample === null) return null;
      const end = first + count;
      const rows = Array.from({ length: sample.drafts.length + 1 }, (_, i) =>
        at.get(end - sample.drafts.length - 1 + i)!,
      );
      const output = this.#outputs.get(sequence)!;
      const tokens = output.sample(rows, sample);
      return { tokens, drafted: sample.drafts.length, draft: output.draft(sample.draftMax) };
    });
  }

  /** Returns what the head computes for rows x (M, D). The rows are views that the next call overwrites. */
  async #logitRows(x: Float32Array): Promise<LogitRow[]> {
    const { emb_dim: D } = this.#setup.config;
    const M = x.length / D;
    if (M === 0) return [];
    const outputs = this.#logitOutputs(M);
    await this.#logits!.run({ x: { data: x, dims: [M, D] } }, outputs);
    return toldRows(outputs);
  }

  #logitOutputs(M: number): LogitOutputs {
    const { vocab_size: V } = this.#setup.config;
    return {
      logits: { data: this.#scratch.take('logits', M * V), dims: [M, V] },
      max: { data: this.#scratch.take('max', M), dims: [M, 1] },
      logSum: { data: this.#scratch.take('logSum', M), dims: [M, 1] },
    };
  }

  /** Ends sequences; unknown ones are ignored. */
  end({ sequences, keepCaches }: Omit<StageCalls['serveEnd'][0], 'lease'>): void {
    for (const sequence of sequences) {
      this.#outputs.delete(sequence);
      if (keepCaches) continue;
      this.#caches.get(sequence)?.free();
      this.#caches.delete(sequence);
    }
  }

  async close(): Promise<void> {
    for (const cache of this.#caches.values()) cache.free();
    this.#caches.clear();
    this.#outputs.clear();
    this.#scratch.clear();
    const programs = [this.#qkv, this.#logits, this.#pass, ...this.#feeds.splice(0), ...this.#attends.values()];
    this.#attends.clear();
    [this.#qkv, this.#logits, this.#pass, this.#embeddings] = [null, null, null, null];
    for (const program of programs) await program?.release();
  }
}

/** The result of a step's rows: x for the next stage, or the head's rows of logits. */
interface Passed {
  readonly x: Float32Array | null;
  readonly told: readonly LogitRow[];
}

type LogitOutputs = Readonly<Record<'logits' | 'max' | 'logSum', { data: Float32Array; dims: readonly number[] }>>;

const toldRows = ({ logits, max, logSum }: LogitOutputs): LogitRow[] =>
  logitRows({ logits: logits.data, max: max.data, logSum: logSum.data });

/** Copies rows of x (M, D), in the given order. */
function gatherRows(x: Float32Array, rows: readonly number[], { D }: { D: number }): Float32Array {
  const gathered = new Float32Array(rows.length * D);
  for (const [i, row] of rows.entries()) gathered.set(x.subarray(row * D, (row + 1) * D), i * D);
  return gathered;
}

/** Returns the loss of each target, in nats: the last rows of the step, in order, predict the targets. */
function losses(
  at: ReadonlyMap<number, LogitRow>,
  { targets, rowCount }: { targets: readonly number[]; rowCount: number },
): number[] {
  return targets.map((target, i) => -logprobOf(at.get(rowCount - targets.length + i)!, target));
}
