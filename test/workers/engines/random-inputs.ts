// Makes inputs for any program, the same for the same seed: numbers in [-1, 1), masks of 0 and 1, and indices below a limit.

import type { Graph, GraphInput } from '../../../src/model/programs/graph.ts';
import { philox } from '../../../src/model/random/philox.ts';
import type { Tensor } from '../../../src/workers/engines/engine.ts';

export interface InputSettings {
  readonly seed: number;
  /** The lengths of the symbolic dimensions. */
  readonly sizes?: Readonly<Record<string, number>>;
  /** The values of int64 inputs are below this limit, unless `shape` makes them. */
  readonly indexLimit?: number;
  /** Makes each value of a named input from noise in [-1, 1) and from the value's place. */
  readonly shape?: Readonly<Record<string, (noise: number, place: number) => number>>;
}

export function noise(length: number, seed: number): Float32Array {
  const [input, out, values] = [new Uint32Array(6), new Uint32Array(4), new Float32Array(length)];
  for (let i = 0; i < length; i++) {
    input.set([i, 0, 0, 0, seed, 0]);
    philox(out, input);
    values[i] = out[0] / 2 ** 31 - 1;
  }
  return values;
}

function randomInput({ name, type: element, dims }: GraphInput, seed: number, settings: InputSettings): Tensor {
  const lengths = dims.map((dim) => (typeof dim === 'number' ? dim : settings.sizes![dim]));
  const values = noise(
    lengths.reduce((product, length) => product * length, 1),
    seed,
  );
  const limit = settings.indexLimit ?? 1;
  const shape = settings.shape?.[name];
  switch (element) {
    case 'float32':
      return { data: values.map((value, place) => shape?.(value, place) ?? value), dims: lengths };
    case 'uint8':
      return { data: Uint8Array.from(values, (value) => (value > -0.5 ? 1 : 0)), dims: lengths };
    case 'int64':
      return {
        data: BigInt64Array.from(values, (value, place) =>
          BigInt(shape?.(value, place) ?? Math.floor(((value + 1) / 2) * limit)),
        ),
        dims: lengths,
      };
    default:
      element satisfies never;
      throw new Error('unknown type');
  }
}

export const randomInputs = (graph: Graph, settings: InputSettings): Record<string, Tensor> =>
  Object.fromEntries(
    graph.inputs.map((input, i) => [input.name, randomInput(input, settings.seed * 1000 + i, settings)]),
  );

/** Returns the largest difference of two arrays, relative to the largest number in the second one. */
export function difference(values: Float32Array, reference: Float32Array): number {
  if (values.length !== reference.length) return Infinity;
  let [most, scale] = [0, 1e-30];
  for (const [i, value] of reference.entries()) {
    // Equal infinities are no difference. Any other value that is no number makes the difference infinite.
    const apart = values[i] === value ? 0 : Math.abs(values[i] - value);
    most = Math.max(most, Number.isNaN(apart) ? Infinity : apart);
    scale = Math.max(scale, Math.abs(value));
  }
  return most / scale;
}
