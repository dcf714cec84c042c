// Checks what training relies on. A run that is given all of its outputs writes them in place, also over its own inputs, and
// makes no copy of them. The number of threads does not change the bits.

import { expect, test } from 'vitest';
import { blockForwardProgram } from '../../../src/model/programs/block.ts';
import { GraphBuilder, type Graph } from '../../../src/model/programs/graph.ts';
import { onnxEngine } from '../../../src/workers/engines/onnx.ts';
import { randomInputs } from './random-inputs.ts';

const SIZE = 1 << 22;

/** Returns a graph with y = x + x and z = x * x. */
function twoOutputs(): Graph {
  const g = new GraphBuilder('two outputs');
  const x = g.input('x', [SIZE]);
  g.output('y', g.node('Add', [x, x]));
  g.output('z', g.node('Mul', [x, x]));
  return g.build();
}

const tensor = (data: Float32Array): { data: Float32Array; dims: number[] } => ({ data, dims: [data.length] });

test('outputs that are all given are written in place and not copied', async () => {
  const program = await onnxEngine.compile(twoOutputs());
  const [x, y, z] = [3, 0, 0].map((value) => new Float32Array(SIZE).fill(value));
  const allocated = (): number => process.memoryUsage().arrayBuffers;
  const before = allocated();
  for (let i = 0; i < 3; i++) {
    expect(await program.run({ x: tensor(x) }, { y: tensor(y), z: tensor(z) })).toEqual({});
    expect(allocated() - before).toBeLessThan(SIZE);
  }
  expect([y[0], y.at(-1), z[0], z.at(-1)]).toEqual([6, 6, 9, 9]);
  await program.release();
});

test('outputs that are not given are returned', async () => {
  const program = await onnxEngine.compile(twoOutputs());
  const [x, y] = [3, 0].map((value) => new Float32Array(SIZE).fill(value));
  const some = await program.run({ x: tensor(x) }, { y: tensor(y) });
  expect(Object.keys(some)).toEqual(['z']);
  expect([y[0], some['z'][0]]).toEqual([6, 9]);
  const all = await program.run({ x: tensor(x) });
  expect([all['y'][0], all['z'][0]]).toEqual([6, 9]);
  await program.release();
});

test('a sum is accumulated in place in its own array', async () => {
  const g = new GraphBuilder('accumulate');
  const [a, b, soFar] = [g.input('a', [40, 30]), g.input('b', [40, 20]), g.input('soFar', [30, 20])];
  g.output('sum', g.node('Gemm', [a, b, soFar], { transA: 1 }));
  const program = await onnxEngine.compile(g.build());
  const matrix = (rows: number, columns: number, value: number): { data: Float32Array; dims: number[] } => ({
    data: new Float32Array(rows * columns).fill(value),
    dims: [rows, columns],
  });
  const sum = matrix(30, 20, 1);
  for (let i = 0; i < 3; i++) await program.run({ a: matrix(40, 30, 1), b: matrix(40, 20, 2), soFar: sum }, { sum });
  expect(new Set(sum.data)).toEqual(new Set([1 + 3 * 80]));
  await program.release();
});

test('a run that fails rejects, although its outputs are given', async () => {
  const program = await onnxEngine.compile(twoOutputs());
  const [x, y, z] = [3, 0, 0].map((value) => new Float32Array(SIZE).fill(value));
  const wrong = { data: x.subarray(1), dims: [SIZE - 1] };
  await expect(program.run({ x: wrong }, { y: tensor(y), z: tensor(z) })).rejects.toThrow(/x/);
  await program.release();
});

test('large constants may be written over once the program is compiled', async () => {
  const g = new GraphBuilder('scaled');
  const [scale, shift] = [new Float32Array(SIZE).fill(2), new Float32Array(SIZE).fill(5)];
  const scaled = g.node('Mul', [g.input('x', [SIZE]), g.constant(scale, [SIZE])]);
  g.output('y', g.node('Add', [scaled, g.constant(shift, [SIZE])]));
  const program = await onnxEngine.compile(g.build());
  for (const constant of [scale, shift]) constant.fill(NaN);
  const { y } = await program.run({ x: tensor(new Float32Array(SIZE).fill(3)) });
  expect(new Set(y)).toEqual(new Set([11]));
  await program.release();
});

test('an output in the memory of an input overwrites only some of it, and the nodes behind read the new values', async () => {
  const g = new GraphBuilder('put');
  const put = g.node('ScatterND', [g.input('cache', [SIZE]), g.input('at', [2, 1], 'int64'), g.input('entries', [2])]);
  g.output('written', put);
  g.output('sum', g.node('ReduceSum', [put], { keepdims: 0 }));
  const program = await onnxEngine.compile(g.build());
  const cache = tensor(new Float32Array(SIZE).fill(1));
  const at = { data: BigInt64Array.of(7n, 9n), dims: [2, 1] };
  const { sum } = await program.run({ cache, at, entries: tensor(Float32Array.of(4, 5)) }, { written: cache });
  expect(sum[0]).toBe(SIZE + 7);
  expect(Array.from(cache.data.subarray(6, 11))).toEqual([1, 4, 1, 5, 1]);
  await program.release();
});

test.each([
  [256, 4, 1, 16],
  [256, 1, 1, 64],
  [272, 4, 1, 32],
  [384, 6, 2, 100],
  [768, 12, 1, 256],
])(
  'from width 256 on, as training relies on: width %i, %i heads, %i x %i tokens forward on two threads have the bits of one',
  async (D, heads, B, T) => {
    const config = {
      vocab_size: 10,
      context_length: T,
      emb_dim: D,
      n_heads: heads,
      n_layers: 1,
      drop_rate: 0,
      qkv_bias: true,
      tie_weights: false,
    };
    const graph = blockForwardProgram(config, { B, T }, { save: true });
    const inputs = randomInputs(graph, { seed: 5 });
    const results: Record<string, Float32Array>[] = [];
    for (const threadCount of [1, 2]) {
      const program = await onnxEngine.compile(graph, { threadCount });
      results.push(await program.run(inputs));
      await program.release();
    }
    const [one, two] = results;
    expect(Object.keys(one)).toContain('y');
    for (const [name, { buffer }] of Object.entries(one)) {
      expect(Buffer.from(two[name].buffer).equals(Buffer.from(buffer)), name).toBe(true);
    }
  },
);
