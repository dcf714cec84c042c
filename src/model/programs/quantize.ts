// Block-wise quantization of weights for serving: 128 weights of one output share a scale (and a zero point), as in ONNX
// Runtime's MatMulNBits, whose layout this is. int8 is symmetric; int4 fits each block's own range. Training never uses it.
// Letters: K inputs, N outputs, S blocks of a column.

import { assert } from '../errors.ts';

export const QUANTIZATIONS = ['int8', 'int4'] as const;
export type Quantization = (typeof QUANTIZATIONS)[number];

/** Weights that share a scale. Other bytes of the same weights need a migration of the store: see store/migrations.ts. */
export const BLOCK_SIZE = 128;

/** A matrix of K inputs and N outputs. */
interface QuantizedShape {
  readonly quantization: Quantization;
  readonly K: number;
  readonly N: number;
}

/** Also how the weights lie that it is made of: (K, N), or (N, K) when `transposed`. */
export interface QuantizedSource extends QuantizedShape {
  readonly transposed: boolean;
}

export interface QuantizedMatrix {
  readonly bits: 4 | 8;
  /** The three arrays, one behind the other: all that there is to keep. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /** (N, S, BLOCK_SIZE * bits / 8): an output's weights are contiguous; of two 4-bit weights the first is the low half. */
  readonly data: Uint8Array;
  /** (N * S). */
  readonly scales: Float32Array;
  /** int4: two blocks a byte, every output's row filled up to a whole byte. int8: empty, the zero point is always 128. */
  readonly zeroPoints: Uint8Array;
}

/** Bytes of a quantized matrix. */
export function quantizedBytes({ quantization, K, N }: QuantizedShape): number {
  const S = Math.ceil(K / BLOCK_SIZE);
  return quantization === 'int8' ? N * S * (BLOCK_SIZE + 4) : N * (S * (BLOCK_SIZE / 2 + 4) + Math.ceil(S / 2));
}

/** The matrix whose `bytes` these are: a buffer of their own, which the arrays share. */
export function quantizedMatrix(
  bytes: Uint8Array<ArrayBuffer>,
  { quantization, K, N }: QuantizedShape,
): QuantizedMatrix {
  const { length } = bytes;
  assert(
    length === quantizedBytes({ quantization, K, N }),
    `${length} bytes are a ${K} x ${N} matrix in ${quantization}`,
  );
  const blocks = N * Math.ceil(K / BLOCK_SIZE);
  const bits = quantization === 'int8' ? 8 : 4;
  const dataBytes = (blocks * BLOCK_SIZE * bits) / 8;
  return {
    bits,
    bytes,
    data: bytes.subarray(0, dataBytes),
    scales: new Float32Array(bytes.buffer, bytes.byteOffset + dataBytes, blocks),
    zeroPoints: bytes.subarray(dataBytes + 4 * blocks),
  };
}

/** `weight` is only read. */
export function quantize(weight: Float32Array, { quantization, K, N, transposed }: QuantizedSource): QuantizedMatrix {
  assert(weight.length === K * N, `${weight.length} weights are a ${K} x ${N} matrix`);
  const bytes = new Uint8Array(quantizedBytes({ quantization, K, N }));
  const matrix = quantizedMatrix(bytes, { quantization, K, N });
  const { bits, data, scales, zeroPoints } = matrix;
  const S = Math.ceil(K / BLOCK_SIZE);
  const zeroRow = Math.ceil(S / 2);
  const [inputStride, outputStride] = transposed ? [1, K] : [N, 1];
  const block = new Float32Array(BLOCK_SIZE);
  for (let n = 0; n < N; n++) {
    for (let s = 0; s < S; s++) {
      const count = Math.min(BLOCK_SIZE, K - s * BLOCK_SIZE);
      let [low, high] = [0, 0];
      for (let i = 0; i < count; i++) {
        const value = weight[(s * BLOCK_SIZE + i) * inputStride + n * outputStride];
        block[i] = value;
        low = Math.min(low, value);
        high = Math.max(high, value);
      }
      block.fill(0, count);
      const at = n * S + s;
      if (bits === 8) {
        scales[at] = eightBits(block, { largest: Math.max(-low, high), into: data.subarray(at * BLOCK_SIZE) });
        continue;
      }
      const { scale, zero } = fourBits(block, { low, high, into: data.subarray((at * BLOCK_SIZE) / 2) });
      scales[at] = scale;
      zeroPoints[n * zeroRow + (s >> 1)] |= zero << (4 * (s & 1));
    }
  }
  return matrix;
}

/** Writes round(value / scale) + 128 and returns the scale. */
function eightBits(block: Float32Array, { largest, into }: { largest: number; into: Uint8Array }): number {
  const scale = Math.fround(largest / 127);
  const inverse = scale === 0 ? 0 : 1 / scale;
  for (let i = 0; i < BLOCK_SIZE; i++) {
    into[i] = 128 + Math.max(-127, Math.min(127, Math.round(block[i] * inverse)));
  }
  return scale;
}

/** Writes round(value / scale) + zero, from 0 to 15, where 0 is exact. */
function fourBits(
  block: Float32Array,
  { low, high, into }: { low: number; high: number; into: Uint8Array },
): { scale: number; zero: number } {
  const scale = Math.fround((high - low) / 15);
  const inverse = scale === 0 ? 0 : 1 / scale;
  const zero = Math.max(0, Math.min(15, Math.round(-low * inverse)));
  const code = (value: number): number => Math.max(0, Math.min(15, Math.round(value * inverse) + zero));
  for (let i = 0; i < BLOCK_SIZE; i += 2) into[i / 2] = code(block[i]) | (code(block[i + 1]) << 4);
  return { scale, zero };
}
