// What happens to a stage's tensors between a backward pass and the next forward pass: AdamW updates them in place, a unit at a
// time, and snapshots keep weights and moments as they were while later updates go on.

import { adamwScalars } from '../../model/programs/adamw.ts';
import { assert } from '../../model/errors.ts';
import { ArrayPool } from '../memory/reuse.ts';
import type { FusedProgram } from '../engines/fused-program.ts';
import { CHUNK_SIZE, type ChunkAddress } from '../store/messages.ts';
import type { UpdateUnit, UpdateRequest } from './messages.ts';
import { Snapshot } from './snapshot.ts';
import type { Parameter } from './parameters.ts';

/** The elements of a tensor that a snapshot keeps together. */
type Chunk = Pick<ChunkAddress, 'start' | 'count'>;

export class TrainOptimizer {
  /** Holds the stage's tensors by their names in the tensor table. */
  readonly #parameters: ReadonlyMap<string, Parameter>;
  readonly #adamw: FusedProgram;
  #snapshot: Snapshot | null = null;
  /** Holds the arrays of chunks that were set aside and have been read. */
  readonly #snapshotArrays = new ArrayPool();
  /** Counts, by tensor name, the elements that the update under way has finished. */
  readonly #updated = new Map<string, number>();

  /** `adamw` is adamwProgram: the parameters' weights and moments are arrays that it has allocated. */
  constructor(parameters: ReadonlyMap<string, Parameter>, adamw: FusedProgram) {
    this.#parameters = parameters;
    this.#adamw = adamw;
  }

  /**
   * Runs AdamW on the trained tensors of a unit: weights and moments change in place, and the gradients are dropped. Returns
   * false when a snapshot has no room for what would be overwritten next: read more of it and call again with the same request.
   */
  update({ step, decayAll }: UpdateRequest, unit: UpdateUnit): boolean {
    const [decayed, plain] = [step.weightDecay, 0].map((weightDecay) => adamwScalars({ ...step, weightDecay }));
    const parameters = [...this.#parameters.values()].filter(
      ({ spec }) => spec.trained && unit === (spec.place === 'block' ? spec.block : 'ends'),
    );
    for (const parameter of parameters) {
      const { spec, begun } = parameter;
      const scalars = decayAll || spec.matrix ? decayed : plain;
      for (let start = this.#updated.get(spec.name) ?? 0; start < spec.size; start += CHUNK_SIZE) {
        assert(begun, `${spec.name} has no gradient`);
        const chunk = { start, count: Math.min(CHUNK_SIZE, spec.size - start) };
        if (!this.#mayOverwrite(parameter, chunk)) return false;
        this.#updateChunk(parameter, chunk, scalars);
        this.#updated.set(spec.name, start + chunk.count);
      }
      Object.assign(parameter, { begun: false, sumOfSquares: null, hasMoments: true });
    }
    for (const { spec } of parameters) this.#updated.delete(spec.name);
    return true;
  }

  #updateChunk(parameter: Parameter, { start, count }: Chunk, scalars: ReturnType<typeof adamwScalars>): void {
    const [w, g, m, v] = (['w', 'g', 'm', 'v'] as const).map((name) => parameter[name].subarray(start, start + count));
    // Memory that is read before it is written takes two page faults, and the second interrupts every core.
    if (!parameter.hasMoments) for (const moment of [m, v]) moment.fill(0);
    this.#adamw.run({ inputs: { w, g, m, v }, into: { wNext: w, mNext: m, vNext: v }, scalars });
  }

  /** Sets aside what a snapshot still needs of the chunk. Returns whether the optimizer may now overwrite the chunk. */
  #mayOverwrite(parameter: Parameter, chunk: Chunk): boolean {
    const snapshot = this.#snapshot;
    if (snapshot === null) return true;
    const { name: tensor } = parameter.spec;
    return TENSOR_PARTS.every((part) => snapshot.release({ tensor, part, ...chunk }, parameter[part]));
  }

  /** Begins a snapshot, between two steps: until `endSnapshot`, `readSnapshot` reads the arrays as they are now. */
  beginSnapshot({ keptBytesMax }: { readonly keptBytesMax: number }): void {
    assert(this.#updated.size === 0, 'a snapshot begins between two updates');
    this.#snapshot = new Snapshot({ keptBytesMax, arrays: this.#snapshotArrays });
  }

  /** Copies the chunks to `into` one after the other; `into` is as long as all of them together. */
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
