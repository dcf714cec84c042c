// Checks every backward pass against central finite differences of its forward pass. Programs compute in float32. So the loss is
// a sum in double precision of outputs times fixed weights, the step is large (2^-7), and the tests compare directional
// derivatives along random directions. Their error stays near 1e-3 of the gradient's length; a wrong formula is off by 1e-1.

import { describe, expect, test } from 'vitest';
import {
  blockBackwardProgram,
  blockForwardProgram,
  blockWeightGradientsProgram,
  blockRowWidths,
  BLOCK_SAVED,
} from '../../../src/model/programs/block.ts';
import { embed, embedBackward } from '../../../src/model/programs/embedding.ts';
import { GraphBuilder, type Graph, type Value } from '../../../src/model/programs/graph.ts';
import {
  headLossProgram,
  headTrainProgram,
  headNormGradientsProgram,
  projectionGradientProgram,
  subtractTargets,
} from '../../../src/model/programs/head.ts';
import {
  dropout,
  gelu,
  geluBackward,
  gradientSlabs,
  layerNorm,
  layerNormBackward,
  layerNormScaleGradient,
  linearWeightGradient,
} from '../../../src/model/programs/layers.ts';
import { philox } from '../../../src/model/random/philox.ts';
import { blockTensors } from '../../../src/model/tensors.ts';
import type { Tensor } from '../../../src/workers/engines/engine.ts';
import { onnxEngine } from '../../../src/workers/engines/onnx.ts';

const STEP = 2 ** -7;
const TOLERANCE = 4e-3;

/** Returns values in [-1, 1), the same for the same seed. */
function noise(length: number, seed: number): Float32Array {
  const [input, out, values] = [new Uint32Array(6), new Uint32Array(4), new Float32Array(length)];
  for (let i = 0; i < length; i++) {
    input.set([i, 0, 0, 0, seed, 0]);
    philox(out, input);
    values[i] = out[0] / 2 ** 31 - 1;
  }
  return values;
}

const dot = (a: Float32Array, b: Float32Array): number => a.reduce((sum, value, i) => sum + value * b[i], 0);
const tensor = (data: Float32Array, dims: readonly number[]): Tensor => ({ data, dims });

/** Checks `gradient` of the function `loss` at `x` along three random directions. */
async function checkGradient(
  what: string,
  { x, gradient, loss }: { x: Float32Array; gradient: Float32Array; loss: (x: Float32Array) => Promise<number> },
): Promise<void> {
  for (const seed of [101, 102, 103]) {
    const direction = noise(x.length, seed);
    const along = (factor: number): Float32Array => x.map((value, i) => value + factor * direction[i]);
    const measured = ((await loss(along(STEP))) - (await loss(along(-STEP)))) / (2 * STEP);
    const scale = Math.sqrt(dot(gradient, gradient)) * Math.sqrt(dot(direction, direction) / x.length) + 1e-6;
    expect(Math.abs(measured - dot(gradient, direction)) / scale, `${what}, direction ${seed}`).toBeLessThan(TOLERANCE);
  }
}

async function runGraph(graph: Graph, inputs: Record<string, Tensor>): Promise<Record<string, Float32Array>> {
  const program = await onnxEngine.compile(graph);
  const outputs = await program.run(inputs);
  await program.release();
  return outputs;
}

const [N, D] = [5, 12];

/** Checks one small layer: `forward` and `backward` emit nodes over the named inputs x (N, D), dy (N, D) and w (D). */
async function checkLayer(
  what: string,
  layer: {
    forward: (g: GraphBuilder, x: Value, w: Value) => Value;
    backward: (g: GraphBuilder, values: { x: Value; dy: Value; w: Value }) => { dx?: Value; dw?: Value };
  },
): Promise<void> {
  const [x, w, dy] = [noise(N * D, 1), noise(D, 2), noise(N * D, 3)];
  const loss = async (inputs: { x: Float32Array; w: Float32Array }): Promise<number> => {
    const g = new GraphBuilder(what);
    g.output('y', layer.forward(g, g.input('x', [N, D]), g.input('w', [D])));
    return dot((await runGraph(g.build(), { x: tensor(inputs.x, [N, D]), w: tensor(inputs.w, [D]) }))['y'], dy);
  };
  const g = new GraphBuilder(`${what} backward`);
  const gradients = layer.backward(g, { x: g.input('x', [N, D]), dy: g.input('dy', [N, D]), w: g.input('w', [D]) });
  for (const [name, value] of Object.entries(gradients)) g.output(name, value);
  const inputs = { x: tensor(x, [N, D]), dy: tensor(dy, [N, D]), w: tensor(w, [D]) };
  const { dx, dw } = (await runGraph(g.build(), inputs)) as { dx?: Float32Array; dw?: Float32Array };
  if (dx !== undefined) await checkGradient(`${what} dx`, { x, gradient: dx, loss: (moved) => loss({ x: moved, w }) });
  if (dw !== undefined)
    await checkGradient(`${what} dw`, { x: w, gradient: dw, loss: (moved) => loss({ x, w: moved }) });
}

test('layerNormBackward and layerNormScaleGradient', async () => {
  await checkLayer('layerNorm', {
    forward: (g, x, w) => layerNorm(g, x, { weight: w, bias: g.constant(noise(D, 4), [D]) }),
    backward: (g, { x, dy, w }) => ({
      dx: layerNormBackward(g, x, { dy, weight: w }),
      dw: layerNormScaleGradient(g, x, { dy, weight: w, soFar: null }),
    }),
  });
});

test("a weight's gradient in slabs is the whole product", async () => {
  const [height, width] = [800, 6];
  const slabs = gradientSlabs(height);
  expect(slabs).toEqual([267, 267, 266]);
  const [x, dy, soFar] = [noise(N * height, 1), noise(N * width, 2), noise(height * width, 3)];
  const g = new GraphBuilder('slabs');
  const [rows, dRows] = [g.input('x', [N, height]), g.input('dy', [N, width])];
  const before = slabs.map((rowCount, i) => g.input(`soFar${i}`, [rowCount, width]));
  for (const [i, slab] of linearWeightGradient(g, rows, { dy: dRows, slabs, soFar: before }).entries())
    g.output(`slab${i}`, slab);
  const inputs: Record<string, Tensor> = { x: tensor(x, [N, height]), dy: tensor(dy, [N, width]) };
  for (const [i, rowCount] of slabs.entries())
    inputs[`soFar${i}`] = tensor(soFar.subarray(i * 267 * width, (i * 267 + rowCount) * width), [rowCount, width]);
  const outputs = await runGraph(g.build(), inputs);
  const gradient = slabs.flatMap((_, i) => [...outputs[`slab${i}`]]);
  expect(gradient).toHaveLength(height * width);
  for (const [i, value] of gradient.entries()) {
    const [column, of] = [i % width, Math.floor(i / width)];
    let sum = soFar[i];
    for (let row = 0; row < N; row++) sum += x[row * height + of] * dy[row * width + column];
    expect(value).toBeCloseTo(sum, 5);
  }
});

test('geluBackward', async () => {
  await checkLayer('gelu', {
    forward: (g, x) => gelu(g, g.node('Mul', [x, g.scalar(3)])),
    backward: (g, { x, dy }) => ({
      dx: g.node('Mul', [geluBackward(g, g.node('Mul', [x, g.scalar(3)]), dy), g.scalar(3)]),
    }),
  });
});

test('dropout is its own backward pass', async () => {
  const mask = Uint8Array.from(noise(N * D, 9), (value) => (value > -0.4 ? 1 : 0));
  const drop = (g: GraphBuilder, x: Value): Value => dropout(g, x, { mask: g.constant(mask, [N, D]), rate: 0.3 });
  await checkLayer('dropout', { forward: (g, x) => drop(g, x), backward: (g, { dy }) => ({ dx: drop(g, dy) }) });
});

test('embedBackward adds each row at its id and its position', () => {
  const [V, T] = [7, 3];
  const ids = Uint32Array.of(1, 5, 1, 0, 5, 5);
  const [wte, wpe] = [noise(V * D, 1), noise(T * D, 2)];
  const x = embed(ids, { wte, wpe, D }, { T });
  expect(x[4 * D + 1]).toBe(Math.fround(wte[5 * D + 1] + wpe[D + 1]));
  const dx = Float32Array.from({ length: ids.length * D }, (_, i) => Math.floor(i / D) + 1);
  const [dwte, dwpe] = [new Float32Array(V * D), new Float32Array(T * D)];
  embedBackward(dx, ids, { dwte, dwpe, D, T });
  expect([0, 1, 2, 5].map((id) => dwte[id * D])).toEqual([4, 1 + 3, 0, 2 + 5 + 6]);
  expect([0, 1, 2].map((position) => dwpe[position * D])).toEqual([1 + 4, 2 + 5, 3 + 6]);
});

describe.each([0, 0.25])('the block with drop rate %d', (drop_rate) => {
  const config = {
    vocab_size: 11,
    context_length: 8,
    emb_dim: 12,
    n_heads: 3,
    n_layers: 1,
    drop_rate,
    qkv_bias: true,
    tie_weights: false,
  };
  const batch = { B: 2, T: 5 };
  const rows = batch.B * batch.T;
  const weights: Record<string, Float32Array> = Object.fromEntries(
    blockTensors(config, 0).map(({ name, size }, i) => [
      name.slice(4),
      noise(size, 20 + i).map((value) => value * 0.6),
    ]),
  );
  const dims = Object.fromEntries(blockTensors(config, 0).map(({ name, shape }) => [name.slice(4), shape]));
  const maskDims = { maskProbabilities: [2, 3, 5, 5], maskAttention: [rows, 12], maskFeedForward: [rows, 12] };
  const masks: Record<string, Tensor> = {};
  if (drop_rate > 0) {
    for (const [i, [name, shape]] of Object.entries(maskDims).entries()) {
      const length = shape.reduce((product, size) => product * size, 1);
      masks[name] = { data: Uint8Array.from(noise(length, 60 + i), (value) => (value > -0.5 ? 1 : 0)), dims: shape };
    }
  }
  const [x, dy] = [noise(rows * 12, 1), noise(rows * 12, 2)];
  const tensors = (values: Record<string, Float32Array>): Record<string, Tensor> =>
    Object.fromEntries(Object.entries(values).map(([name, data]) => [name, tensor(data, dims[name])]));
  const forward = (at: Float32Array, values: Record<string, Float32Array>): Promise<Record<string, Float32Array>> =>
    runGraph(blockForwardProgram(config, batch, { save: true }), {
      x: tensor(at, [rows, 12]),
      ...tensors(values),
      ...masks,
    });
  const savedDims: Record<string, readonly number[]> = {
    qkv: [rows, 36],
    probabilities: [2, 3, 5, 5],
    context: [rows, 12],
    a: [rows, 12],
    u: [rows, 48],
  };

  async function backward(): Promise<{ dx: Float32Array; all: Record<string, Tensor> }> {
    const saved = await forward(x, weights);
    const inputs: Record<string, Tensor> = { x: tensor(x, [rows, 12]), dy: tensor(dy, [rows, 12]) };
    for (const name of BLOCK_SAVED) inputs[name] = tensor(saved[name], savedDims[name]);
    const graph = blockBackwardProgram(config, batch);
    const wanted = new Set<string>(graph.inputs.map(({ name }) => name));
    const offered = { ...inputs, ...tensors(weights), ...masks };
    const { dx, ...gradients } = await runGraph(
      graph,
      Object.fromEntries(Object.entries(offered).filter(([name]) => wanted.has(name))),
    );
    const widths = blockRowWidths(config);
    const rowGradients = Object.entries(gradients).map(
      ([name, data]) => [name, tensor(data, [rows, widths[name as keyof typeof widths]])] as const,
    );
    return { dx, all: { ...offered, dFed: inputs['dy'], ...Object.fromEntries(rowGradients) } };
  }

  test('B: the gradient of its input', async () => {
    const { dx } = await backward();
    await checkGradient('dx', {
      x,
      gradient: dx,
      loss: async (moved) => dot((await forward(moved, weights))['y'], dy),
    });
  });

  test('W: the gradient of each of its tensors, alone and added to an earlier one', async () => {
    const { all } = await backward();
    const run = async (accumulate: boolean, soFar: Record<string, Tensor>): Promise<Record<string, Float32Array>> => {
      const graph = blockWeightGradientsProgram(config, batch, { accumulate });
      const wanted = new Set<string>(graph.inputs.map(({ name }) => name));
      return runGraph(
        graph,
        Object.fromEntries(Object.entries({ ...all, ...soFar }).filter(([name]) => wanted.has(name))),
      );
    };
    const first = await run(false, {});
    for (const [name, data] of Object.entries(weights)) {
      const gradient = first[`${name}.gradient`];
      const loss = async (moved: Float32Array): Promise<number> =>
        dot((await forward(x, { ...weights, [name]: moved }))['y'], dy);
      await checkGradient(name, { x: data, gradient, loss });
    }
    const soFar = Object.fromEntries(
      Object.keys(weights).map((name) => [`${name}.soFar`, tensor(first[`${name}.gradient`], dims[name])]),
    );
    const twice = await run(true, soFar);
    for (const name of Object.keys(weights)) {
      for (const [i, value] of first[`${name}.gradient`].entries())
        expect(twice[`${name}.gradient`][i]).toBeCloseTo(2 * value, 4);
    }
  });
});

test('the head: gradients of its input and its tensors', async () => {
  const config = {
    vocab_size: 9,
    context_length: 8,
    emb_dim: D,
    n_heads: 3,
    n_layers: 1,
    drop_rate: 0,
    qkv_bias: false,
    tie_weights: false,
  };
  const target: Tensor = { data: BigInt64Array.of(3n, 0n, 8n, 3n, 5n), dims: [N, 1] };
  const start = {
    x: noise(N * D, 1),
    'ln_f.weight': noise(D, 2),
    'ln_f.bias': noise(D, 3),
    projection: noise(9 * D, 4),
  };
  const dims: Record<string, readonly number[]> = {
    x: [N, D],
    'ln_f.weight': [D],
    'ln_f.bias': [D],
    projection: [9, D],
  };
  const inputs = (values: Record<string, Float32Array>): Record<string, Tensor> => ({
    target,
    ...Object.fromEntries(Object.entries(values).map(([name, data]) => [name, tensor(data, dims[name])])),
  });
  // The loss is a mean over 7 rows, and the program has 5 of them.
  const loss = async (values: Record<string, Float32Array>): Promise<number> =>
    (await runGraph(headLossProgram(config, N), inputs(values)))['loss'].reduce((sum, row) => sum + row, 0) / 7;
  const outputs = await runGraph(headTrainProgram(config, { rowCount: N, tokenCount: 7 }), inputs(start));
  const norm = await runGraph(headNormGradientsProgram(config, { rowCount: N, accumulate: false }), {
    x: tensor(start.x, [N, D]),
    'ln_f.weight': tensor(start['ln_f.weight'], [D]),
    dNormalized: tensor(outputs['dNormalized'], [N, D]),
  });
  const rows = { rowCount: N, tokenCount: 7 };
  const { gradient } = await runGraph(projectionGradientProgram(config, { ...rows, accumulate: false }), {
    probabilities: tensor(outputs['probabilities'], [9, N]),
    normalized: tensor(outputs['normalized'], [N, D]),
  });
  const targets = Uint32Array.from(target.data, Number);
  subtractTargets(gradient, { targets, normalized: outputs['normalized'], tokenCount: 7 });
  const gradients: Record<string, Float32Array> = { ...norm, 'projection.gradient': gradient };
  expect(outputs['loss'].reduce((sum, row) => sum + row, 0) / 7).toBeCloseTo(await loss(start), 6);
  for (const [name, data] of Object.entries(start)) {
    const own = name === 'x' ? outputs['dx'] : gradients[`${name}.gradient`];
    await checkGradient(name, { x: data, gradient: own, loss: (moved) => loss({ ...start, [name]: moved }) });
  }
});
