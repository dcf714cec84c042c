// What becomes of a stage's tensors between a backward pass and the next forward pass: AdamW in place, a part at a time, and
// snapshots of weights and moments that stay as they were while later updates go on.

import { ADAMW_CHUNK_SIZE, adamwProgram, adamwScalars } from '../model/adamw.ts';
import type { GptConfig } from '../model/config.ts';
import { assert } from '../model/errors.ts';
import type { Graph } from '../model/graph.ts';
import { blockTensors, tensorTable } from '../model/tensors.ts';
import { ArrayPool } from './array-pool.ts';
import type { Program, Tensor, Tensors } from './engine.ts';
import { CHUNK_SIZE, type ChunkAddress, type UpdateLoan, type UpdatePart, type UpdateRequest } from './messages.ts';
import { Snapshot } from './snapshot.ts';
import type { Parameter } from './train-parameters.ts';

type Updated = Pick<Parameter, 'spec' | (typeof UPDATED_ARRAYS)[number]>;

/** Elements [start, end). */
interface Span {
  readonly start: number;
  readonly end: number;
}

export interface OptimizedStage {
  /** By the table's names. */
  readonly parameters: ReadonlyMap<string, Parameter>;
  readonly config: GptConfig;
  readonly program: (name: string, graph: () => Graph) => Promise<Program>;
}

export class TrainOptimizer {
  readonly #parameters: ReadonlyMap<string, Parameter>;
  readonly #config: GptConfig;
  readonly #program: OptimizedStage['program'];
  #snapshot: Snapshot | null = null;
  /** Of chunks that were set aside and have been read. */
  readonly #snapshotArrays = new ArrayPool();
  /** Elements of the table's tensors, by name, that the update under way is done with. */
  readonly #updated = new Map<string, number>();

  constructor({ parameters, config, program }: OptimizedStage) {
    this.#parameters = parameters;
    this.#config = config;
    this.#program = program;
  }

  /**
   * AdamW on a part of the stage's tensors; weights and moments change in place, the gradients are dropped. False when a
   * snapshot has no room for what would be overwritten next: read more of it and call again with the same request.
   */
  async update(request: UpdateRequest, part: UpdatePart): Promise<boolean> {
    const run = await this.#begin(request);
    const parameters = [...this.#parameters.values()].filter(
      ({ spec }) => part === (spec.place === 'block' ? spec.block : 'ends'),
    );
    for (const parameter of parameters) {
      const { spec, begun } = parameter;
      for (let start = this.#updated.get(spec.name) ?? 0; start < spec.size; start += ADAMW_CHUNK_SIZE) {
        assert(begun, `${spec.name} has no gradient`);
        if (!this.#mayOverwrite(parameter, start)) return false;
        const end = Math.min(start + ADAMW_CHUNK_SIZE, spec.size);
        await run(parameter, { start, end });
        this.#updated.set(spec.name, end);
      }
      Object.assign(parameter, { begun: false, sumOfSquares: null });
    }
    for (const { spec } of parameters) this.#updated.delete(spec.name);
    return true;
  }

  /** Blocks for another stage to update: `takeBack` ends it. */
  lend(blocks: readonly number[]): UpdateLoan {
    assert(this.#snapshot === null, 'what a snapshot needs stays here');
    const arrays = blocks.flatMap((block) =>
      blockTensors(this.#config, block).flatMap(({ name }) => {
        const parameter = this.#parameters.get(name)!;
        assert(parameter.begun, `${name} has no gradient`);
        return UPDATED_ARRAYS.map((array) => ({ name, array, bytes: parameter[array] }));
      }),
    );
    return { arrays };
  }

  /** Updates blocks, whoever's they are. */
  async updateFor(request: UpdateRequest, { arrays }: UpdateLoan): Promise<UpdateLoan> {
    const run = await this.#begin(request);
    const specs = new Map(tensorTable(this.#config).map((spec) => [spec.name, spec]));
    for (let i = 0; i < arrays.length; i += UPDATED_ARRAYS.length) {
      const spec = specs.get(arrays[i].name)!;
      const [w, g, m, v] = arrays.slice(i, i + UPDATED_ARRAYS.length).map(({ bytes }) => bytes);
      for (let start = 0; start < spec.size; start += ADAMW_CHUNK_SIZE) {
        await run({ spec, w, g, m, v }, { start, end: Math.min(start + ADAMW_CHUNK_SIZE, spec.size) });
      }
    }
    return { arrays };
  }

  takeBack({ arrays }: UpdateLoan): void {
    for (const { name, array, bytes } of arrays) {
      Object.assign(this.#parameters.get(name)!, { [array]: bytes, begun: false, sumOfSquares: null });
    }
  }

  /** What updates the elements [start, end) of a tensor. */
  async #begin({ step, decayAll }: UpdateRequest): Promise<(tensor: Updated, span: Span) => Promise<void>> {
    const program = await this.#program('adamw', adamwProgram);
    const scalars = (weightDecay: number): Tensors =>
      Object.fromEntries(
        Object.entries(adamwScalars({ ...step, weightDecay })).map(([name, value]) => [
          name,
          { data: Float32Array.of(value), dims: [] },
        ]),
      );
    const [decayed, plain] = [scalars(step.weightDecay), scalars(0)];
    return async ({ spec, w, g, m, v }, { start, end }) => {
      const chunk = (data: Float32Array): Tensor => ({ data: data.subarray(start, end), dims: [end - start] });
      const [cw, cm, cv] = [chunk(w), chunk(m), chunk(v)];
      await program.run(
        { w: cw, g: chunk(g), m: cm, v: cv, ...(decayAll || spec.matrix ? decayed : plain) },
        { wNext: cw, mNext: cm, vNext: cv },
      );
    };
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

  /** Between two steps: `readSnapshot` reads the arrays as they are now until `endSnapshot`. */
  beginSnapshot({ keptBytesMax }: { readonly keptBytesMax: number }): void {
    assert(this.#updated.size === 0, 'a snapshot begins between two updates');
    this.#snapshot = new Snapshot({ keptBytesMax, arrays: this.#snapshotArrays });
  }

  /** Copies the chunks to `into`, one behind the other: it is as long as they are together. */
  readSnapshot(addresses: readonly ChunkAddress[], into: Float32Array): void {
    const snapshot = this.#snapshot;
    assert(snapshot !== null, 'no snapshot has begun');
    let end = 0;
    for (const address of addresses) {
      const { tensor, part, count } = address;
      const live = this.#parameters.get(tensor)![part];
      snapshot.read(address, { live, into: into.subarray(end, end + count) });
      end += count;
    }
    assert(end === into.length, `${into.length} elements for chunks of ${end}`);
  }

  endSnapshot(): void {
    this.#snapshot = null;
  }
}

const TENSOR_PARTS = ['w', 'm', 'v'] as const;
const UPDATED_ARRAYS = ['w', 'g', 'm', 'v'] as const;
