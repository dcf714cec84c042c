// ONNX's fused layers, composed of operations that TensorFlow.js can differentiate: LayerNormalization with its extra outputs,
// the forms of GELU, and the two softmaxes.

import type { Operator, OperatorTable, Tensor, Tf } from './site.ts';

/** tanh-GELU is u sigmoid(z) with z = GELU_SLOPE (u + GELU_CUBIC u^3). The sigmoid is much faster than the tanh. */
const GELU_SLOPE = 2 * Math.sqrt(2 / Math.PI);
const GELU_CUBIC = 0.044715;

const tanhGelu = (tf: Tf, u: Tensor): Tensor => {
  const slope = tf.add(tf.mul(tf.square(u), GELU_SLOPE * GELU_CUBIC), GELU_SLOPE);
  return tf.mul(u, tf.sigmoid(tf.mul(u, slope)));
};

const erfGelu = (tf: Tf, u: Tensor): Tensor => tf.mul(tf.mul(u, 0.5), tf.add(tf.erf(tf.mul(u, Math.SQRT1_2)), 1));

/** x, scale, bias -> the normalized rows, and for each row its mean and 1 / its deviation. It knows only the last axis. */
const layerNormalization =
  (tf: Tf): Operator =>
  (site) => {
    const [x, scale, bias] = [site.input(0), site.input(1), site.optional(2)];
    const epsilon = site.float('epsilon', 1e-5);
    const axis = site.int('axis', -1);
    if (axis !== -1) site.refuse(`its axis is ${axis}, and only the last one, -1, is known`);
    site.ignore('stash_type');
    return (values) => {
      const rows = x(values);
      const mean = tf.mean(rows, -1, true);
      const centered = tf.sub(rows, mean);
      const inverseDeviation = tf.rsqrt(tf.add(tf.mean(tf.square(centered), -1, true), epsilon));
      const y = tf.mul(tf.mul(centered, inverseDeviation), scale(values));
      return [bias === null ? y : tf.add(y, bias(values)), mean, inverseDeviation];
    };
  };

/** Applies a function that works over the last axis to any axis. */
const along =
  (tf: Tf, compute: (x: Tensor) => Tensor): Operator =>
  (site) => {
    const x = site.input(0);
    const wanted = site.int('axis', -1);
    return (values) => {
      const value = x(values);
      const [axis, last] = [wanted < 0 ? wanted + value.rank : wanted, value.rank - 1];
      if (axis === last) return [compute(value)];
      const swapped = value.shape.map((_, i) => (i === axis ? last : i === last ? axis : i));
      return [tf.transpose(compute(tf.transpose(value, swapped)), swapped)];
    };
  };

export function layerOperators(tf: Tf): OperatorTable {
  return {
    LayerNormalization: layerNormalization(tf),
    Softmax: along(tf, (x) => tf.softmax(x)),
    LogSoftmax: along(tf, (x) => tf.logSoftmax(x)),
    Gelu: (site) => {
      const u = site.input(0);
      const form = site.text('approximate', 'none');
      if (form !== 'tanh' && form !== 'none') site.refuse(`its form is "${form}"`);
      return (values) => [form === 'tanh' ? tanhGelu(tf, u(values)) : erfGelu(tf, u(values))];
    },
    'com.microsoft:FastGelu': (site) => {
      const [u, bias] = [site.input(0), site.optional(1)];
      return (values) => [tanhGelu(tf, bias === null ? u(values) : tf.add(u(values), bias(values)))];
    },
    'com.microsoft:QuickGelu': (site) => {
      const u = site.input(0);
      const alpha = site.float('alpha', 1.702);
      return (values) => [tf.mul(u(values), tf.sigmoid(tf.mul(u(values), alpha)))];
    },
  };
}
