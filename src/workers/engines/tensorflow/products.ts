// ONNX's matrix products over TensorFlow.js. The wasm backend multiplies two plain matrices with XNNPACK, and everything else
// with a loop that takes ten times as long. So sides are transposed before a product, constant ones only once. Leading axes are
// folded into the rows where the right side has none. Weights of 4 and 8 bits become float32 at compile time.

import type { Operator, OperatorTable, Tensor, Tf } from './site.ts';

/** Swaps the last two axes. */
function transposed(tf: Tf, x: Tensor): Tensor {
  const axes = x.shape.map((_, axis) => axis);
  return tf.transpose(x, [...axes.slice(0, -2), axes.at(-1)!, axes.at(-2)!]);
}

/** a (..., M, K), b (..., K, N) -> (..., M, N). */
function product(tf: Tf, a: Tensor, b: Tensor): Tensor {
  if (a.rank === 2 && b.rank === 2) return tf.matMul(a, b);
  if (b.rank === 2) {
    const folded = tf.matMul(tf.reshape(a, [-1, a.shape.at(-1)!]), b);
    return tf.reshape(folded, [...a.shape.slice(0, -1), b.shape.at(-1)!]);
  }
  // The backend pairs the matrices of both sides in order and begins again with the first one of the shorter side. That is wrong
  // for an axis of length one in the middle, so both sides are broadcast beforehand.
  const leading = (x: Tensor, other: Tensor): number[] =>
    x.shape.slice(0, -2).map((length, axis) => (length === 1 ? (other.shape[axis] ?? 1) : length));
  const whole = (x: Tensor, other: Tensor): Tensor =>
    x.rank === other.rank ? tf.broadcastTo(x, [...leading(x, other), ...x.shape.slice(-2)]) : x;
  return tf.matMul(whole(a, b), whole(b, a));
}

const scaled = (tf: Tf, x: Tensor, factor: number): Tensor => (factor === 1 ? x : tf.mul(x, factor));

const side =
  (tf: Tf, transpose: boolean): ((x: Tensor) => Tensor) =>
  (x) =>
    transpose ? transposed(tf, x) : x;

/** Computes alpha A B + beta C; the attributes may ask for A and B to be transposed. */
const gemm =
  (tf: Tf): Operator =>
  (site) => {
    const a = site.prepared(0, side(tf, site.flag('transA')));
    const b = site.prepared(1, side(tf, site.flag('transB')));
    const c = site.optional(2);
    const [alpha, beta] = [site.float('alpha', 1), site.float('beta', 1)];
    return (values) => {
      const y = scaled(tf, tf.matMul(a(values), b(values)), alpha);
      return [c === null ? y : tf.add(y, scaled(tf, c(values), beta))];
    };
  };

/** A MatMul times a factor; the last two axes of each side may be transposed. */
const fusedMatMul =
  (tf: Tf): Operator =>
  (site) => {
    if (site.flag('transBatchA') || site.flag('transBatchB')) site.refuse('it transposes batches');
    const a = site.prepared(0, side(tf, site.flag('transA')));
    const b = site.prepared(1, side(tf, site.flag('transB')));
    const alpha = site.float('alpha', 1);
    return (values) => [scaled(tf, product(tf, a(values), b(values)), alpha)];
  };

const matMul =
  (tf: Tf): Operator =>
  (site) => {
    const [a, b] = [site.prepared(0, side(tf, false)), site.prepared(1, side(tf, false))];
    return (values) => [product(tf, a(values), b(values))];
  };

/** Returns number `index` of numbers of `bits` bits, which are packed from the low end of each byte. */
const unpack = (packed: Uint8Array, index: number, bits: number): number =>
  bits === 8 ? packed[index] : (packed[index >> 1] >> ((index & 1) * 4)) & 15;

/**
 * Returns the weight of a MatMulNBits as float32 (K, N). Each of its N columns is packed in blocks along K, and each block has a
 * scale. `zeroPoints` has one number for each block, and each column of it is padded to whole bytes; null stands for the middle
 * of the range everywhere.
 */
export function dequantize(
  packed: Uint8Array,
  scales: Float32Array,
  {
    K,
    N,
    bits,
    blockSize,
    zeroPoints,
  }: { K: number; N: number; bits: number; blockSize: number; zeroPoints: Uint8Array | null },
): Float32Array {
  const blockCount = Math.ceil(K / blockSize);
  const zerosPerColumn = (Math.ceil((blockCount * bits) / 8) * 8) / bits;
  const weight = new Float32Array(K * N);
  for (let n = 0; n < N; n++) {
    for (let k = 0; k < K; k++) {
      const block = Math.floor(k / blockSize);
      const zero = zeroPoints === null ? 2 ** (bits - 1) : unpack(zeroPoints, n * zerosPerColumn + block, bits);
      const level = unpack(packed, (n * blockCount + block) * blockSize + (k % blockSize), bits);
      weight[k * N + n] = (level - zero) * scales[n * blockCount + block];
    }
  }
  return weight;
}

const matMulNBits =
  (tf: Tf): Operator =>
  (site) => {
    const a = site.input(0);
    const [K, N, bits] = [site.int('K', 0), site.int('N', 0), site.int('bits', 4)];
    const blockSize = site.int('block_size', 0);
    // The attribute says how exactly the packed form is multiplied; here the products are plain float32.
    site.ignore('accuracy_level');
    if (bits !== 4 && bits !== 8) site.refuse(`its weights have ${bits} bits`);
    const bytes = (index: number): Uint8Array => {
      const { data } = site.constant(index);
      return data instanceof Uint8Array ? data : site.refuse(`input ${index} is not uint8`);
    };
    const scales = site.constant(2).data;
    if (!(scales instanceof Float32Array)) return site.refuse('its scales are not float32');
    const zeroPoints = site.has(3) ? bytes(3) : null;
    const weight = dequantize(bytes(1), scales, { K, N, bits, blockSize, zeroPoints });
    const b = site.keep(() => tf.tensor(weight, [K, N]));
    const bias = site.optional(5);
    return (values) => {
      const y = product(tf, a(values), b);
      return [bias === null ? y : tf.add(y, bias(values))];
    };
  };

export function productOperators(tf: Tf): OperatorTable {
  return {
    Gemm: gemm(tf),
    MatMul: matMul(tf),
    'com.microsoft:FusedMatMul': fusedMatMul(tf),
    'com.microsoft:MatMulNBits': matMulNBits(tf),
  };
}
