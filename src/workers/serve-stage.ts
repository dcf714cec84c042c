// What one worker thread holds of a model that generates: its blocks' compiled programs, and the keys and values of every
// sequence for these blocks. A row's bits depend neither on the rows beside it nor on the capacity of its cache, so a token
// computed in a prompt equals the same token computed alone. Letters: M rows, D, H, W = D/H, P capacity as in the programs.

import type { GptConfig } from '../model/config.ts';
import { embed } from '../model/embedding.ts';
import { assert, GptdError } from '../model/errors.ts';
import { headTensorNames } from '../model/head.ts';
import { PURPOSE, uniform } from '../model/philox.ts';
import { sample } from '../model/sampling.ts';
import {
  ATTEND_ROWS_MAX,
  ATTEND_ROWS_MIN,
  attendProgram,
  CACHE_STEP,
  feedProgram,
  logitsProgram,
  qkvProgram,
  type Weights,
} from '../model/serving.ts';
import { stopFilter, type StopFilter } from '../model/stop.ts';
import type { StreamDecoder, Tokenizer } from '../model/tokenizer.ts';
import type { Engine, Program } from './engine.ts';
import type { SampledToken, SamplingOptions, StageCalls, StageRange } from './messages.ts';

/**
 * One stream keeps one stage busy at a time, so a program may use a core that another stage leaves idle. Rows have the same
 * bits on one thread and on two.
 */
const THREADS = { threadCount: 2 };

interface BlockPrograms {
  readonly qkv: Program;
  readonly feed: Program;
}

/** Keys (H, P, W) and values (H, W, P) of one sequence in one block. */
interface BlockCache {
  keys: Float32Array;
  values: Float32Array;
}

interface Sequence {
  capacity: number;
  readonly caches: BlockCache[];
  /** Only on the head's stage. */
  readonly output: SequenceOutput | null;
}

interface SequenceOutput {
  /** The prompt's ids, then the generated ones. */
  readonly history: number[];
  readonly promptLength: number;
  readonly sampling: SamplingOptions;
  readonly stopIds: ReadonlySet<number>;
  readonly decoder: StreamDecoder | null;
  readonly stop: StopFilter;
}

export class ServeStage {
  readonly #config: GptConfig;
  readonly #stage: StageRange;
  readonly #tokenizer: Tokenizer | null;
  readonly #blocks: BlockPrograms[] = [];
  readonly #sequences = new Map<string, Sequence>();
  #attend: Program | null = null;
  #logits: Program | null = null;
  #embeddings: { wte: Float32Array; wpe: Float32Array } | null = null;

  private constructor(config: GptConfig, stage: StageRange, tokenizer: Tokenizer | null) {
    this.#config = config;
    this.#stage = stage;
    this.#tokenizer = tokenizer;
  }

  /** Compiles the stage's programs. `load` is asked for one tensor at a time; what is compiled in is not kept twice. */
  static async load(
    engine: Engine,
    { config, stage, tokenizer }: { config: GptConfig; stage: StageRange; tokenizer: Tokenizer | null },
    load: (names: readonly string[]) => Weights,
  ): Promise<ServeStage> {
    const self = new ServeStage(config, stage, tokenizer);
    try {
      await self.#compile(engine, load);
    } catch (error) {
      await self.close();
      throw error;
    }
    return self;
  }

  async #compile(engine: Engine, load: (names: readonly string[]) => Weights): Promise<void> {
    const [config, stage] = [this.#config, this.#stage];
    const blockWeights = (block: number, names: readonly string[]): Weights =>
      load(names.map((name) => `h.${block}.${name}`));
    const biases = config.qkv_bias ? ['attn.c_attn.bias'] : [];
    for (let block = stage.firstBlock; block < stage.endBlock; block++) {
      const first = blockWeights(block, ['ln_1.weight', 'ln_1.bias', 'attn.c_attn.weight', ...biases]);
      const qkv = await engine.compile(qkvProgram(config, first, block), THREADS);
      const second = blockWeights(block, [
        ...['attn.c_proj.weight', 'attn.c_proj.bias', 'ln_2.weight', 'ln_2.bias'],
        ...['mlp.c_fc.weight', 'mlp.c_fc.bias', 'mlp.c_proj.weight', 'mlp.c_proj.bias'],
      ]);
      this.#blocks.push({ qkv, feed: await engine.compile(feedProgram(config, second, block), THREADS) });
    }
    this.#attend = await engine.compile(attendProgram(config), THREADS);
    if (stage.embeds) {
      const tables = load(['wte.weight', 'wpe.weight']);
      this.#embeddings = { wte: tables.get('wte.weight')!, wpe: tables.get('wpe.weight')! };
    }
    if (stage.head) {
      this.#logits = await engine.compile(logitsProgram(config, load(headTensorNames(config))), THREADS);
    }
  }

  /** Opens a sequence on the head's stage: encodes the prompt and sets up its output. */
  begin(request: StageCalls['serveBegin'][0]): StageCalls['serveBegin'][1] {
    const { prompt, continued, stop, stopIds, sampling } = request;
    const ids = typeof prompt === 'string' ? this.#encode(prompt) : prompt;
    const V = this.#config.vocab_size;
    const bad = ids.find((id) => id >= V);
    if (bad !== undefined) {
      throw new GptdError('invalid_spec', `The prompt has token ${bad}: the model's ids go from 0 to ${V - 1}.`);
    }
    const output: SequenceOutput = {
      history: [...ids, ...continued],
      promptLength: ids.length,
      sampling,
      stopIds: new Set(stopIds),
      decoder: this.#tokenizer?.stream() ?? null,
      stop: stopFilter(stop),
    };
    const shown = continued.map((id) => output.stop.push(output.decoder?.push(id) ?? ''));
    this.#sequences.set(request.sequence, { capacity: 0, caches: [], output });
    return { ids, stopped: shown.some(({ stopped }) => stopped) || output.stopIds.has(continued.at(-1) ?? -1) };
  }

  #encode(prompt: string): readonly number[] {
    if (this.#tokenizer === null) {
      throw new GptdError('invalid_spec', 'This model has no tokenizer: give the prompt as token ids (--prompt-ids).');
    }
    return Array.from(this.#tokenizer.encode(prompt));
  }

  /** Runs rows through the stage's blocks; see StageCalls.serveStep. */
  async step(request: StageCalls['serveStep'][0]): Promise<StageCalls['serveStep'][1]> {
    const { position, input, sampleIndex, last } = request;
    const { emb_dim: D } = this.#config;
    let x = input instanceof Float32Array ? input : this.embed(input, position);
    const rowCount = x.length / D;
    const sequence = this.#sequence(request.sequence, position + rowCount);
    for (const [index, { qkv, feed }] of this.#blocks.entries()) {
      const dims = [rowCount, D];
      const { qkv: rows } = await qkv.run({ x: { data: x, dims } });
      const context = await this.#attendTo(sequence, { block: index, rows: rows, position });
      x = (await feed.run({ x: { data: x, dims }, context: { data: context, dims } }))['y']!;
    }
    if (!this.#stage.head) return { x, token: null };
    if (sampleIndex === null) return { x: null, token: null };
    return {
      x: null,
      token: await this.#sample(sequence.output!, x.subarray((rowCount - 1) * D), { sampleIndex, last }),
    };
  }

  /** wte[id] + wpe[position] for consecutive positions: (M, D). */
  embed(ids: readonly number[], position: number): Float32Array {
    const { emb_dim: D } = this.#config;
    assert(this.#embeddings !== null, 'this stage does not embed');
    const { wte, wpe } = this.#embeddings;
    return embed(Uint32Array.from(ids), { wte, wpe: wpe.subarray(position * D), D }, { T: ids.length });
  }

  /** The sequence with room for `length` positions. */
  #sequence(name: string, length: number): Sequence {
    let sequence = this.#sequences.get(name);
    if (sequence === undefined) {
      sequence = { capacity: 0, caches: [], output: null };
      this.#sequences.set(name, sequence);
    }
    if (length > sequence.capacity) this.#grow(sequence, Math.ceil(length / CACHE_STEP) * CACHE_STEP);
    return sequence;
  }

  #grow(sequence: Sequence, capacity: number): void {
    const { emb_dim: D, n_heads: H } = this.#config;
    const W = D / H;
    for (let block = 0; block < this.#blocks.length; block++) {
      const old = sequence.caches.at(block);
      const grown: BlockCache = { keys: new Float32Array(D * capacity), values: new Float32Array(D * capacity) };
      if (old !== undefined) {
        const P = sequence.capacity;
        for (let row = 0; row < D; row++) grown.values.set(old.values.subarray(row * P, (row + 1) * P), row * capacity);
        for (let head = 0; head < H; head++) {
          grown.keys.set(old.keys.subarray(head * P * W, (head + 1) * P * W), head * capacity * W);
        }
      }
      sequence.caches[block] = grown;
    }
    sequence.capacity = capacity;
  }

  /** Puts the rows' keys and values into the cache and attends, some rows at a time: rows (M, 3D) -> context (M, D). */
  async #attendTo(
    sequence: Sequence,
    { block, rows, position }: { block: number; rows: Float32Array; position: number },
  ): Promise<Float32Array> {
    const { emb_dim: D, n_heads: H } = this.#config;
    const [W, P] = [D / H, sequence.capacity];
    const rowCount = rows.length / (3 * D);
    const { keys, values } = sequence.caches[block];
    const cache = { keys: { data: keys, dims: [H, P, W] }, values: { data: values, dims: [H, W, P] } };
    const context = new Float32Array(rowCount * D);
    for (let first = 0; first < rowCount; first += ATTEND_ROWS_MAX) {
      const count = Math.min(ATTEND_ROWS_MAX, rowCount - first);
      const queryCount = Math.max(count, ATTEND_ROWS_MIN);
      const q = new Float32Array(queryCount * D);
      for (let row = 0; row < count; row++) {
        const from = (first + row) * 3 * D;
        const at = position + first + row;
        q.set(rows.subarray(from, from + D), row * D);
        for (let head = 0; head < H; head++) {
          const start = from + D + head * W;
          keys.set(rows.subarray(start, start + W), (head * P + at) * W);
        }
        for (let i = 0; i < D; i++) values[i * P + at] = rows[from + 2 * D + i];
      }
      // A lone row goes with a twin.
      if (count < queryCount) q.copyWithin(D, 0, D);
      const attended = await this.#attend!.run({
        ...cache,
        q: { data: q, dims: [queryCount, D] },
        mask: {
          data: attentionMask(queryCount, position + first, { last: position + first + count - 1, P }),
          dims: [queryCount, P],
        },
      });
      context.set(attended['context'].subarray(0, count * D), first * D);
    }
    return context;
  }

  async #sample(
    output: SequenceOutput,
    x: Float32Array,
    { sampleIndex, last }: { sampleIndex: number; last: boolean },
  ): Promise<SampledToken> {
    const { logits } = await this.#logits!.run({ x: { data: x, dims: [1, this.#config.emb_dim] } });
    const { seed, ...options } = output.sampling;
    const u = uniform({ seed, purpose: PURPOSE.sampling, step: 0, index: sampleIndex });
    const { history, promptLength } = output;
    const { id, logprob, top } = sample(logits, { ...options, history, promptLength, u });
    output.history.push(id);
    const piece = (token: number): string => this.#tokenizer?.decode([token]) ?? '';
    const token = {
      ...{ id, logprob },
      ...(options.logprobs === undefined ? {} : { piece: piece(id) }),
      ...(top === undefined ? {} : { top: top.map((other) => ({ ...other, text: piece(other.id) })) }),
    };
    const ended = output.stopIds.has(id);
    const pushed = ended ? { text: '', stopped: false } : output.stop.push(output.decoder?.push(id) ?? '');
    if (pushed.stopped || !(last || ended)) return { ...token, ...pushed };
    const rest = output.stop.push(output.decoder?.flush() ?? '');
    return { ...token, text: pushed.text + rest.text + output.stop.flush(), stopped: rest.stopped || ended };
  }

  /** Frees a sequence; unknown ones too. */
  end(sequence: string): void {
    this.#sequences.delete(sequence);
  }

  async close(): Promise<void> {
    this.#sequences.clear();
    for (const { qkv, feed } of this.#blocks.splice(0)) {
      await qkv.release();
      await feed.release();
    }
    await this.#attend?.release();
    await this.#logits?.release();
    [this.#attend, this.#logits, this.#embeddings] = [null, null, null];
  }
}

/** (R, P): row r sees positions up to `position` + r, but none behind `last`: a twin sees what its row sees. */
function attentionMask(rowCount: number, position: number, { last, P }: { last: number; P: number }): Float32Array {
  const mask = new Float32Array(rowCount * P);
  for (let row = 0; row < rowCount; row++) {
    mask.fill(-Infinity, row * P + Math.min(position + row, last) + 1, (row + 1) * P);
  }
  return mask;
}
