// ONNX's operators that move values and compute almost nothing, over TensorFlow.js. Shapes and axes are constants of the program.
// GatherElements and the scatter operators work by flat positions, which are checked: the wasm backend itself would read and
// write past a tensor's end.

import { GptdError } from '../../../model/errors.ts';
import type { Operator, OperatorTable, Tensor, Tf } from './site.ts';

const sizeOf = (shape: readonly number[]): number => shape.reduce((size, length) => size * length, 1);

const fromEnd = (axis: number, rank: number): number => (axis < 0 ? axis + rank : axis);

/** ONNX's Reshape: 0 keeps the length of that axis, and -1 stands for what is left. */
const reshape =
  (tf: Tf): Operator =>
  (site) => {
    const x = site.input(0);
    const wanted = site.integers(1);
    const zeroIsZero = site.flag('allowzero');
    return (values) => {
      const value = x(values);
      const shape = wanted.map((length, axis) => (length === 0 && !zeroIsZero ? value.shape[axis] : length));
      return [tf.reshape(value, shape)];
    };
  };

const split =
  (tf: Tf): Operator =>
  (site) => {
    const x = site.input(0);
    const axis = site.int('axis', 0);
    const count = site.int('num_outputs', site.node.outputs.length);
    const lengths = site.has(1) ? [...site.integers(1)] : null;
    return (values) => {
      const value = x(values);
      // Without lengths the parts are equal, but the last one may be shorter.
      const whole = value.shape[fromEnd(axis, value.rank)];
      const part = Math.ceil(whole / count);
      const equal = Array.from({ length: count }, (_, i) => Math.min(part, whole - i * part));
      return tf.split(value, lengths ?? equal, fromEnd(axis, value.rank));
    };
  };

/** Slice has a start and an end for each axis; an end beyond the tensor is the tensor's end. */
const slice =
  (tf: Tf): Operator =>
  (site) => {
    const x = site.input(0);
    const [starts, endsOf] = [site.integers(1), site.list(2)];
    const axes = site.has(3) ? site.integers(3) : starts.map((_, i) => i);
    if (site.has(4) && site.integers(4).some((step) => step !== 1)) site.refuse('its steps are not 1');
    return (values) => {
      const [value, ends] = [x(values), endsOf(values)];
      const begin = value.shape.map(() => 0);
      const size = [...value.shape];
      for (const [i, at] of axes.entries()) {
        const axis = fromEnd(at, value.rank);
        const length = value.shape[axis];
        const bounded = (position: number): number => Math.min(Math.max(fromEnd(position, length), 0), length);
        begin[axis] = bounded(starts[i]);
        size[axis] = Math.max(0, bounded(ends[i]) - begin[axis]);
      }
      return [tf.slice(value, begin, size)];
    };
  };

/** Returns the positions in the flattened `data` (N, V) of the elements that `indices` (N, K) name in each row. */
function flatPositions(data: Tensor, indices: Tensor, what: string): Int32Array {
  const [rowCount, width] = data.shape as [number, number];
  const [indexRowCount, perRow] = indices.shape as [number, number];
  const positions = indices.dataSync<'int32'>().slice();
  for (const [i, index] of positions.entries()) {
    if (index < -width || index >= width) {
      throw new GptdError('engine_failed', `${what}: index ${index} is not in a row of ${width} values.`);
    }
    positions[i] = Math.floor(i / perRow) * width + fromEnd(index, width);
  }
  if (indexRowCount !== rowCount) {
    throw new GptdError(
      'engine_failed',
      `${what}: indices of ${indexRowCount} rows do not fit data of ${rowCount} rows.`,
    );
  }
  return positions;
}

/** GatherElements and ScatterElements work on matrices and along their rows: they know only the last axis. */
const refuseOtherAxes = (site: Parameters<Operator>[0]): void => {
  const axis = site.int('axis', 0);
  if (axis !== 1 && axis !== -1) site.refuse(`its axis is ${axis}, and only the last one is known`);
};

const gatherElements =
  (tf: Tf): Operator =>
  (site) => {
    const [data, indices] = [site.input(0), site.input(1)];
    refuseOtherAxes(site);
    return (values) => {
      const [from, at] = [data(values), indices(values)];
      const positions = tf.tensor1d(flatPositions(from, at, 'GatherElements'), 'int32');
      return [tf.reshape(tf.gather(tf.reshape(from, [-1]), positions), at.shape)];
    };
  };

const scatterElements =
  (tf: Tf): Operator =>
  (site) => {
    const [data, indices, updates] = [site.input(0), site.input(1), site.input(2)];
    refuseOtherAxes(site);
    const reduction = site.text('reduction', 'none');
    if (reduction !== 'add') site.refuse(`its reduction is "${reduction}", and only "add" is known`);
    return (values) => {
      const [to, at] = [data(values), indices(values)];
      const positions = tf.tensor2d(flatPositions(to, at, 'ScatterElements'), [at.size, 1], 'int32');
      const added = tf.scatterND(positions, tf.reshape(updates(values), [-1]), [to.size]);
      return [tf.add(to, tf.reshape(added, to.shape))];
    };
  };

/** Overwrites whole entries, each at the place in the first axes that the last axis of `indices` names. */
const scatterND =
  (tf: Tf): Operator =>
  (site) => {
    const [data, indices, updates] = [site.input(0), site.input(1), site.input(2)];
    const reduction = site.text('reduction', 'none');
    if (reduction !== 'none') site.refuse(`its reduction is "${reduction}", and only "none" is known`);
    return (values) => {
      const [to, at, entries] = [data(values), indices(values), updates(values)];
      const depth = at.shape.at(-1)!;
      const [axes, size] = [to.shape.slice(0, depth), sizeOf(to.shape.slice(depth))];
      const [places, from, written] = [at.dataSync(), entries.dataSync(), to.dataSync().slice()];
      for (let i = 0; i * depth < places.length; i++) {
        let place = 0;
        for (const [axis, length] of axes.entries()) {
          const index = fromEnd(places[i * depth + axis], length);
          if (index < 0 || index >= length) {
            throw new GptdError('engine_failed', `ScatterND: index ${index} is not in an axis of ${length} values.`);
          }
          place = place * length + index;
        }
        written.set(from.subarray(i * size, (i + 1) * size), place * size);
      }
      return [tf.tensor(written, to.shape, 'float32')];
    };
  };

export function shapeOperators(tf: Tf): OperatorTable {
  return {
    Reshape: reshape(tf),
    Split: split(tf),
    Slice: slice(tf),
    GatherElements: gatherElements(tf),
    ScatterElements: scatterElements(tf),
    ScatterND: scatterND(tf),
    Transpose: (site) => {
      const x = site.input(0);
      const perm = site.ints('perm');
      return (values) => [tf.transpose(x(values), perm === null ? undefined : [...perm])];
    },
    Concat: (site) => {
      const parts = site.node.inputs.map((_, index) => site.input(index));
      const axis = site.int('axis', 0);
      return (values) => {
        const tensors = parts.map((part) => part(values));
        return [tf.concat(tensors, fromEnd(axis, tensors[0].rank)).clone()];
      };
    },
    Gather: (site) => {
      const [data, indices] = [site.input(0), site.input(1)];
      const axis = site.int('axis', 0);
      return (values) => {
        const from = data(values);
        return [tf.gather(from, indices(values), fromEnd(axis, from.rank))];
      };
    },
    Expand: (site) => {
      const x = site.input(0);
      const wanted = site.integers(1);
      return (values) => {
        const value = x(values);
        // Both shapes are aligned at the end; where the wanted length is 1, the value keeps its own.
        const rank = Math.max(value.rank, wanted.length);
        const own = [...Array<number>(rank - value.rank).fill(1), ...value.shape];
        const asked = [...Array<number>(rank - wanted.length).fill(1), ...wanted];
        return [
          tf.broadcastTo(
            tf.reshape(value, own),
            own.map((length, i) => Math.max(length, asked[i])),
          ),
        ];
      };
    },
    Unsqueeze: (site) => {
      const x = site.input(0);
      const axes = site.integers(1);
      return (values) => {
        const value = x(values);
        const shape = [...value.shape];
        const added = axes.map((axis) => fromEnd(axis, value.rank + axes.length)).sort((a, b) => a - b);
        for (const axis of added) shape.splice(axis, 0, 1);
        return [tf.reshape(value, shape)];
      };
    },
    Squeeze: (site) => {
      const x = site.input(0);
      const axes = site.has(1) ? site.integers(1) : null;
      return (values) => {
        const value = x(values);
        const gone = axes?.map((axis) => fromEnd(axis, value.rank));
        return [
          tf.reshape(
            value,
            value.shape.filter((length, i) => !(gone?.includes(i) ?? length === 1)),
          ),
        ];
      };
    },
  };
}
