// ONNX's elementwise operators and reductions over TensorFlow.js. Both libraries broadcast as NumPy does.

import { assert } from '../../../model/errors.ts';
import type { Operator, OperatorTable, Tensor, Tf } from './site.ts';

/** TensorFlow.js's types by the numbers of the TensorProto element types that Cast may ask for. */
const CAST_TO: Readonly<Record<number, 'float32' | 'int32' | 'bool'>> = {
  1: 'float32',
  2: 'int32',
  6: 'int32',
  7: 'int32',
  9: 'bool',
};

const unary =
  (compute: (x: Tensor) => Tensor): Operator =>
  (site) => {
    const x = site.input(0);
    return (values) => [compute(x(values))];
  };

const binary =
  (compute: (a: Tensor, b: Tensor) => Tensor): Operator =>
  (site) => {
    const [a, b] = [site.input(0), site.input(1)];
    return (values) => [compute(a(values), b(values))];
  };

/** Max, Min and Sum take any number of values. */
const variadic =
  (compute: (a: Tensor, b: Tensor) => Tensor): Operator =>
  (site) => {
    const reads = site.node.inputs.map((_, index) => site.input(index));
    assert(reads.length > 0, `${site.node.op} has no input`);
    return (values) => [
      reads
        .slice(1)
        .reduce((sofar, read) => compute(sofar, read(values)), reads[0](values))
        .clone(),
    ];
  };

const reduction =
  (compute: (x: Tensor, axes: number[] | undefined, keepDims: boolean) => Tensor): Operator =>
  (site) => {
    const x = site.input(0);
    // Since opset 18 the axes are an input of every reduction. No axes mean all of them, or with the flag no reduction.
    const axes = site.has(1) ? [...site.integers(1)] : [];
    const keepDims = site.int('keepdims', 1) !== 0;
    const nothing = site.flag('noop_with_empty_axes') && axes.length === 0;
    return (values) => [nothing ? x(values).clone() : compute(x(values), axes.length > 0 ? axes : undefined, keepDims)];
  };

const cast =
  (tf: Tf): Operator =>
  (site) => {
    const x = site.input(0);
    site.ignore('saturate');
    const to = site.int('to', 0);
    const type = CAST_TO[to] ?? site.refuse(`it casts to element type ${to}`);
    // A cast to the value's own type may return the same tensor, which the caller must not own twice.
    return (values) => [tf.cast(x(values), type).clone()];
  };

export function elementwiseOperators(tf: Tf): OperatorTable {
  return {
    Add: binary((a, b) => tf.add(a, b)),
    Sub: binary((a, b) => tf.sub(a, b)),
    Mul: binary((a, b) => tf.mul(a, b)),
    Div: binary((a, b) => tf.div(a, b)),
    Pow: binary((a, b) => tf.pow(a, b)),
    Equal: binary((a, b) => tf.equal(a, b)),
    Less: binary((a, b) => tf.less(a, b)),
    LessOrEqual: binary((a, b) => tf.lessEqual(a, b)),
    Greater: binary((a, b) => tf.greater(a, b)),
    GreaterOrEqual: binary((a, b) => tf.greaterEqual(a, b)),
    Max: variadic((a, b) => tf.maximum(a, b)),
    Min: variadic((a, b) => tf.minimum(a, b)),
    Sum: variadic((a, b) => tf.add(a, b)),
    Abs: unary((x) => tf.abs(x)),
    Exp: unary((x) => tf.exp(x)),
    Log: unary((x) => tf.log(x)),
    Neg: unary((x) => tf.neg(x)),
    Reciprocal: unary((x) => tf.reciprocal(x)),
    Sigmoid: unary((x) => tf.sigmoid(x)),
    Sqrt: unary((x) => tf.sqrt(x)),
    Tanh: unary((x) => tf.tanh(x)),
    Identity: unary((x) => x.clone()),
    Cast: cast(tf),
    Where: (site) => {
      const [condition, a, b] = [site.input(0), site.input(1), site.input(2)];
      return (values) => [tf.where(tf.cast(condition(values), 'bool'), a(values), b(values))];
    },
    ReduceMax: reduction((x, axes, keepDims) => tf.max(x, axes, keepDims)),
    ReduceMin: reduction((x, axes, keepDims) => tf.min(x, axes, keepDims)),
    ReduceMean: reduction((x, axes, keepDims) => tf.mean(x, axes, keepDims)),
    ReduceSum: reduction((x, axes, keepDims) => tf.sum(x, axes, keepDims)),
    ReduceSumSquare: reduction((x, axes, keepDims) => tf.sum(tf.square(x), axes, keepDims)),
  };
}
