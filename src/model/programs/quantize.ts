// Block-wise quantization of weights for serving: 128 weights of one output share a scale (and a zero point), in the layout of
// ONNX Runtime's MatMulNBits. int8 is symmetric; int4 fits the range of each block. Training never uses quantized weights.
// Letters: K inputs, N outputs, S blocks of a column.

import { assert } from '../errors.ts';

export const QUANTIZATIONS = ['int8', 'int4'] as const;
export type Quantization = (typeof QUANTIZATIONS)[number];

/**
 * The number of weights that share a scale. The store keeps quantized bytes, so a change that gives the same weights other bytes
 * needs a migration: see workers/store/migrations.ts.
 */
export const BLOCK_SIZE = 128;

/** A matrix of K inputs and N outputs. */
interface QuantizedShape {
  readonly quantization: Quantization;
  readonly K: number;
  readonly N: number;
}

/** A matrix to be quantized, whose weights lie as (K, N), or as (N, K) when `transposed`. */
export interface QuantizedSource extends QuantizedShape {
  readonly transposed: boolean;
}

export interface QuantizedMatrix {
  readonly bits: 4 | 8;
  /** The three arrays below, one after the other. A copy of these bytes keeps the whole matrix. */
  readonly bytes: Uint8Array<ArrayBuffer>;
  /**
   * (N, S, BLOCK_SIZE * bits / 8): an output's weights are contiguous. Of two 4-bit weights the first is the low half of a byte.
   */
  readonly data: Uint8Array;
  /** The scales of the blocks (N * S). */
  readonly scales: Float32Array;
  /**
   * In int4, a byte holds the zero points of two blocks, and each output's row is filled up to a whole byte. In int8 the array is
   * empty, because the zero point is always 128.
   */
  readonly zeroPoints: Uint8Array;
}

/** Returns the bytes of a quantized matrix. */
export function quantizedBytes({ quantization, K, N }: QuantizedShape): number {
  const S = Math.ceil(K / BLOCK_SIZE);
  return quantization === 'int8' ? N * S * (BLOCK_SIZE + 4) : N * (S * (BLOCK_SIZE / 2 + 4) + Math.ceil(S / 2));
}

/** Returns the matrix that `bytes` hold. Its arrays are views of `bytes`, not copies. */
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

/** Quantizes `weight`, which is only read, into new memory. */
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

/** Writes round(value / scale) + zero, a code from 0 to 15 that is exact for the value 0. Returns the scale and `zero`. */
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
