// Block-wise quantization of weights for serving: 32 weights of one output share a scale (and a zero point), as in ONNX
// Runtime's MatMulNBits, whose layout this is. int8 is symmetric; int4 fits each block's own range. Training never uses it.
// Letters: K inputs, N outputs, S blocks of a column.

import { assert } from './errors.ts';

export const QUANTIZATIONS = ['int8', 'int4'] as const;
export type Quantization = (typeof QUANTIZATIONS)[number];

/** Weights that share a scale. */
export const BLOCK_SIZE = 32;

export interface QuantizedMatrix {
  readonly bits: 4 | 8;
  /** (N, S, BLOCK_SIZE * bits / 8): an output's weights are contiguous; of two 4-bit weights the first is the low half. */
  readonly data: Uint8Array;
  /** (N * S). */
  readonly scales: Float32Array;
  /** int4: two blocks a byte, every output's row filled up to a whole byte. int8: empty, the zero point is always 128. */
  readonly zeroPoints: Uint8Array;
}

/** Bytes of a quantized matrix of K inputs and N outputs. */
export function quantizedBytes(quantization: Quantization, { K, N }: { K: number; N: number }): number {
  const S = Math.ceil(K / BLOCK_SIZE);
  return quantization === 'int8' ? N * S * (BLOCK_SIZE + 4) : N * (S * (BLOCK_SIZE / 2 + 4) + Math.ceil(S / 2));
}

/** weight (K, N), or (N, K) when `transposed`, is only read. */
export function quantize(
  weight: Float32Array,
  { quantization, K, N, transposed }: { quantization: Quantization; K: number; N: number; transposed: boolean },
): QuantizedMatrix {
  assert(weight.length === K * N, `${weight.length} weights are a ${K} x ${N} matrix`);
  const S = Math.ceil(K / BLOCK_SIZE);
  const bits = quantization === 'int8' ? 8 : 4;
  const data = new Uint8Array((N * S * BLOCK_SIZE * bits) / 8);
  const scales = new Float32Array(N * S);
  const zeroRow = Math.ceil(S / 2);
  const zeroPoints = new Uint8Array(bits === 4 ? N * zeroRow : 0);
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
  return { bits, data, scales, zeroPoints };
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
