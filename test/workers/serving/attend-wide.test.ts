// Checks that many query rows at once attend with the same bits as sixteen at a time, for every width of a head that allows it.

import { expect, test } from 'vitest';
import { ATTEND_ROWS_MAX, attendProgram, attendsWide, wideAttendProgram } from '../../../src/model/programs/serving.ts';
import type { GptConfig } from '../../../src/model/config.ts';
import type { Tensor } from '../../../src/workers/engines/engine.ts';
import { loadEngine } from '../../../src/workers/engines/choice.ts';

const onnx = await loadEngine('onnx');
const H = 3;

const configOf = (W: number): GptConfig => ({
  vocab_size: 61,
  context_length: 2048,
  emb_dim: H * W,
  n_heads: H,
  n_layers: 1,
  drop_rate: 0,
  qkv_bias: false,
  tie_weights: false,
});

const bytes = ({ data }: Tensor): Buffer => Buffer.from((data as Float32Array).slice().buffer);

function values(seed: number, dims: readonly number[]): Tensor {
  const length = dims.reduce((product, dim) => product * dim, 1);
  return { data: Float32Array.from({ length }, (_, i) => Math.sin(seed + 1.7 * i) + Math.cos(0.013 * i * i)), dims };
}

/** Returns the mask of rows at the last R of P positions. */
function causal(R: number, P: number): Float32Array {
  const mask = new Float32Array(R * P);
  for (let row = 0; row < R; row++) mask.fill(-Infinity, row * P + P - R + row + 1, (row + 1) * P);
  return mask;
}

test.each([
  ...[16, 32, 48, 64, 80, 128].map((W) => ({ W, P: 512, R: 96 })),
  ...[64, 192, 320, 640, 1024, 1600].map((P) => ({ W: 64, P, R: 48 })),
  ...[17, 19, 33, 64, 127, 128].map((R) => ({ W: 64, P: 384, R })),
])('$R rows of heads of width $W over $P positions have the same bits', async ({ W, P, R }) => {
  const config = configOf(W);
  expect(attendsWide(config)).toBe(true);
  const D = config.emb_dim;
  const q = values(1, [1, R, D]);
  const caches = { keys: values(2, [1, H, P, W]), values: values(3, [1, H, W, P]) };
  const mask = causal(R, P);
  for (const threadCount of [1, 2]) {
    const wide = await onnx.compile(wideAttendProgram(config, { whole: true }), { threadCount });
    const narrow = await onnx.compile(attendProgram(config, 1), { threadCount });
    try {
      const outputs = await wide.run({ q, ...caches, mask: { data: mask, dims: [1, 1, R, P] } });
      for (let first = 0; first < R; first += ATTEND_ROWS_MAX) {
        // attendProgram takes no single row.
        const from = Math.min(first, R - 2);
        const count = Math.min(ATTEND_ROWS_MAX, R - from);
        const piece = await narrow.run({
          q_0: { data: (q.data as Float32Array).slice(from * D, (from + count) * D), dims: [1, count, D] },
          keys_0: caches.keys,
          values_0: caches.values,
          mask_0: { data: mask.slice(from * P, (from + count) * P), dims: [1, 1, count, P] },
        });
        const expected = { data: piece.context_0, dims: [count, D] };
        const given = { data: outputs.context.slice(from * D, (from + count) * D), dims: [count, D] };
        expect(bytes(given).equals(bytes(expected))).toBe(true);
      }
    } finally {
      await wide.release();
      await narrow.release();
    }
  }
});

test.each([
  { W: 64, C: 512, P: 128 },
  { W: 16, C: 1600, P: 640 },
  { W: 128, C: 192, P: 64 },
])('the first $P of $C positions alone give the same, heads of $W', async ({ W, C, P }) => {
  const [config, R] = [configOf(W), 64];
  const q = values(1, [1, R, config.emb_dim]);
  const caches = { keys: values(2, [1, H, C, W]), values: values(3, [1, H, W, C]) };
  const begun = causal(R, P);
  const whole = new Float32Array(R * C).fill(-Infinity);
  for (let row = 0; row < R; row++) whole.set(begun.subarray(row * P, (row + 1) * P), row * C);
  const [all, first] = await Promise.all(
    [true, false].map((whole) => onnx.compile(wideAttendProgram(config, { whole }), { threadCount: 2 })),
  );
  try {
    const expected = await all.run({ q, ...caches, mask: { data: whole, dims: [1, 1, R, C] } });
    const positions = { data: BigInt64Array.of(BigInt(P)), dims: [1] };
    const given = await first.run({ q, ...caches, positions, mask: { data: begun, dims: [1, 1, R, P] } });
    expect(Buffer.from(given.context.buffer).equals(Buffer.from(expected.context.buffer))).toBe(true);
  } finally {
    await all.release();
    await first.release();
  }
});

test('heads whose width would cut the sums elsewhere do not attend wide', () => {
  expect([8, 24, 40, 144, 256].map((W) => attendsWide(configOf(W)))).toEqual([false, false, false, false, false]);
});
