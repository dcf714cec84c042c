// Runs every program of the model on both engines with the same random inputs, and compares the backward passes, which are
// written by hand, with the derivatives that TensorFlow.js computes from the forward programs.

import { readdirSync } from 'node:fs';
import path from 'node:path';
import '@tensorflow/tfjs-backend-cpu';
import * as tf from '@tensorflow/tfjs-core';
import '@tensorflow/tfjs-core/dist/register_all_gradients.js';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { adamwProgram } from '../../../src/model/programs/adamw.ts';
import {
  blockBackwardProgram,
  blockForwardProgram,
  blockWeightGradientsProgram,
  BLOCK_ROW_GRADIENTS,
  BLOCK_SAVED,
} from '../../../src/model/programs/block.ts';
import type { GptConfig } from '../../../src/model/config.ts';
import type { Graph } from '../../../src/model/programs/graph.ts';
import {
  headLogitsProgram,
  headLossProgram,
  headTrainProgram,
  headNormGradientsProgram,
  projectionGradientProgram,
  subtractTargets,
} from '../../../src/model/programs/head.ts';
import { QUANTIZATIONS, type Quantization } from '../../../src/model/programs/quantize.ts';
import {
  attendProgram,
  feedProgram,
  logitsProgram,
  passProgram,
  qkvProgram,
  wideAttendProgram,
} from '../../../src/model/programs/serving.ts';
import { blockTensors, tensorTable } from '../../../src/model/tensors.ts';
import type { Engine, Tensor } from '../../../src/workers/engines/engine.ts';
import { loadEngine } from '../../../src/workers/engines/choice.ts';
import { interpret, operatorTable, upload } from '../../../src/workers/engines/tensorflow/interpreter.ts';
import { difference, noise, randomInputs, type InputSettings } from './random-inputs.ts';

/**
 * The tolerance, relative to the largest number in the output. Sums run in another order, and exponentials come from other
 * libraries.
 */
const TOLERANCE = 1e-5;

const onnx = await loadEngine('onnx');
const tensorflow = await loadEngine('tensorflow-wasm');

const config: GptConfig = {
  vocab_size: 37,
  context_length: 16,
  emb_dim: 24,
  n_heads: 3,
  n_layers: 2,
  drop_rate: 0.25,
  qkv_bias: true,
  tie_weights: false,
};
const tied = { ...config, tie_weights: true };
const batch = { B: 2, T: 7 };
const rowCount = batch.B * batch.T;
const head = { rowCount, tokenCount: 20 };
const weights = new Map(tensorTable(config).map(({ name, size }, i) => [name, noise(size, 500 + i)]));

/**
 * The tolerance for quantized weights. ONNX Runtime rounds the rows to 8 bits that it multiplies with them, and TensorFlow.js
 * does not.
 */
const ROUNDED_TOLERANCE = 0.03;

interface Case extends Omit<InputSettings, 'seed'> {
  readonly graph: Graph;
  readonly tolerance?: number;
}

const maskOf = (value: number): number => (value > 0 ? 0 : -Infinity);

/** Returns the cases of a serving program with its weights in f32, in 8 and in 4 bits. */
const inEachPrecision = (M: number, emit: (quantization: Quantization | null) => Graph): Case[] =>
  [null, ...QUANTIZATIONS].map((quantization) => ({
    graph: emit(quantization),
    sizes: { M, U: M, K: 3, N: 1, R: 2, P: 64 },
    indexLimit: 5,
    shape: { mask: maskOf },
    tolerance: quantization === null ? TOLERANCE : ROUNDED_TOLERANCE,
  }));

/** Returns inputs that give each row's keys and values places of their own: row m has position m. */
function passShape({ emb_dim: D, n_heads: H }: GptConfig): InputSettings['shape'] {
  const indexIn = (place: number, lengths: readonly number[]): number[] =>
    lengths.map(
      (length, axis) => Math.floor(place / lengths.slice(axis + 1).reduce((n, each) => n * each, 1)) % length,
    );
  return {
    fresh: (_, place) => place,
    rows: (value) => (value > 0 ? 0 : 1),
    keyPlaces: (_, place) => {
      const [m, head, i] = indexIn(place, [5, H, 3]);
      return [0, head, m][i];
    },
    valuePlaces: (_, place) => {
      const [m, head, channel, i] = indexIn(place, [5, H, D / H, 4]);
      return [0, head, channel, m][i];
    },
  };
}

/** The cases, by the name of the function that emits the program. */
const CASES: Readonly<Record<string, readonly Case[]>> = {
  adamwProgram: [
    // Second moments must not be negative.
    {
      graph: adamwProgram(),
      sizes: { n: 300 },
      shape: { v: Math.abs, beta2: Math.abs, gain2: Math.abs, eps: Math.abs },
    },
  ],
  blockForwardProgram: [
    { graph: blockForwardProgram(config, batch, { save: true }) },
    { graph: blockForwardProgram({ ...config, qkv_bias: false }, batch, { save: false }) },
  ],
  blockBackwardProgram: [{ graph: blockBackwardProgram(config, batch) }],
  blockWeightGradientsProgram: [
    { graph: blockWeightGradientsProgram(config, batch, { accumulate: false }) },
    { graph: blockWeightGradientsProgram({ ...config, drop_rate: 0 }, batch, { accumulate: true }) },
  ],
  headLogitsProgram: [config, tied].map((settings) => ({ graph: headLogitsProgram(settings, 1) })),
  headLossProgram: [{ graph: headLossProgram(config, rowCount), indexLimit: 37 }],
  headTrainProgram: [config, tied].map((settings) => ({ graph: headTrainProgram(settings, head), indexLimit: 37 })),
  headNormGradientsProgram: [
    { graph: headNormGradientsProgram(config, { ...head, accumulate: false }) },
    { graph: headNormGradientsProgram(config, { ...head, accumulate: true }) },
  ],
  projectionGradientProgram: [false, true].map((accumulate) => ({
    graph: projectionGradientProgram(config, { ...head, accumulate }),
    sizes: { v: 9 },
  })),
  qkvProgram: inEachPrecision(5, (quantization) => qkvProgram(config, weights, { block: 0, quantization })),
  attendProgram: [
    {
      graph: attendProgram(config, 1),
      sizes: { N_0: 2, R_0: 3, P_0: 64 },
      shape: { mask_0: maskOf },
    },
  ],
  wideAttendProgram: [
    {
      graph: wideAttendProgram({ ...config, emb_dim: 64, n_heads: 2 }, { whole: true }),
      sizes: { R: 20, P: 64, C: 64 },
      shape: { mask: maskOf },
    },
    {
      graph: wideAttendProgram({ ...config, emb_dim: 64, n_heads: 2 }, { whole: false }),
      sizes: { R: 20, P: 64, C: 192 },
      shape: { mask: maskOf, positions: () => 64 },
    },
  ],
  feedProgram: [true, false].flatMap((next) =>
    inEachPrecision(5, (quantization) => feedProgram(config, weights, { block: next ? 0 : 1, next, quantization })),
  ),
  passProgram: [true, false].flatMap((head) =>
    inEachPrecision(
      5,
      (quantization) => passProgram(config, weights, { firstBlock: 0, endBlock: 2, head, quantization }),
      // Both blocks round, so the tolerance is twice as large.
    ).map((each) => ({ ...each, tolerance: 2 * each.tolerance!, shape: { ...each.shape, ...passShape(config) } })),
  ),
  logitsProgram: [config, tied].flatMap((settings) =>
    inEachPrecision(2, (quantization) => logitsProgram(settings, weights, { quantization })),
  ),
};

async function run(
  engine: Engine,
  graph: Graph,
  inputs: Record<string, Tensor>,
): Promise<Record<string, Float32Array>> {
  const program = await engine.compile(graph);
  try {
    return await program.run(inputs);
  } finally {
    await program.release();
  }
}

test('no program of the model is left out', async () => {
  const folder = path.resolve(import.meta.dirname, '../../../src/model/programs');
  const files = readdirSync(folder).filter((name) => name.endsWith('.ts'));
  const modules = await Promise.all(files.map((file) => import(path.join(folder, file)) as Promise<object>));
  const programs = modules.flatMap(Object.keys).filter((name) => name.endsWith('Program'));
  expect(programs.toSorted()).toEqual(Object.keys(CASES).toSorted());
});

describe.each(Object.keys(CASES))('%s', (name) => {
  test('gives the same on ONNX Runtime and on TensorFlow.js', async () => {
    const before = tf.memory().numTensors;
    for (const [i, { graph, tolerance = TOLERANCE, ...settings }] of CASES[name].entries()) {
      const inputs = randomInputs(graph, { seed: i + 1, ...settings });
      const [reference, values] = [await run(onnx, graph, inputs), await run(tensorflow, graph, inputs)];
      expect(Object.keys(values).toSorted()).toEqual(graph.outputs.map((output) => output.name).toSorted());
      for (const [output, data] of Object.entries(reference)) {
        expect(difference(values[output], data), `${output} of "${graph.name}"`).toBeLessThan(tolerance);
      }
    }
    expect(tf.memory().numTensors).toBe(before);
  });
});

/**
 * Returns the gradients of sum(output * dy) over `graph` with respect to the named inputs, as TensorFlow.js itself derives them.
 */
function derivedGradients(
  graph: Graph,
  inputs: Record<string, Tensor>,
  { names, output, dy }: { names: readonly string[]; output: string; dy: Float32Array },
): Record<string, Float32Array> {
  const interpretation = interpret(tf, operatorTable(tf), graph);
  const at = graph.outputs.findIndex(({ name }) => name === output);
  const gradients = tf.tidy(() => {
    const fixed = Object.fromEntries(Object.entries(inputs).map(([name, tensor]) => [name, upload(tf, tensor)]));
    const loss = (...moved: tf.Tensor[]): tf.Scalar => {
      const all = { ...fixed, ...Object.fromEntries(names.map((name, i) => [name, moved[i]])) };
      const y = interpretation.run(new Map(Object.entries(all)), { keepValues: true })[at];
      return tf.sum<tf.Scalar>(tf.mul(tf.reshape(y, [-1]), tf.tensor1d(dy)));
    };
    return tf.grads(loss)(names.map((name) => fixed[name]));
  });
  const data = gradients.map((gradient) => gradient.dataSync<'float32'>());
  tf.dispose(gradients);
  interpretation.dispose();
  return Object.fromEntries(names.map((name, i) => [name, data[i]]));
}

const pick = (graph: Graph, from: Record<string, Tensor>): Record<string, Tensor> =>
  Object.fromEntries(graph.inputs.map(({ name }) => [name, from[name]]));

describe("the backward passes agree with TensorFlow.js's own derivatives", () => {
  // WebAssembly lacks an operation that the derivative of a look-up needs; plain JavaScript has them all.
  beforeAll(() => tf.setBackend('cpu'));
  afterAll(() => tf.setBackend('wasm'));

  test.each([0, 0.25])('the block, with drop rate %d', async (drop_rate) => {
    const settings = { ...config, drop_rate };
    const forward = blockForwardProgram(settings, batch, { save: true });
    const inputs = randomInputs(forward, { seed: 7 });
    const dy = noise(rowCount * config.emb_dim, 8);
    const names = ['x', ...blockTensors(settings, 0).map(({ name }) => name.slice('h.0.'.length))];
    const derived = derivedGradients(forward, inputs, { names, output: 'y', dy });

    const rows = (data: Float32Array): Tensor => ({ data, dims: [rowCount, data.length / rowCount] });
    const saved = await run(onnx, forward, inputs);
    const known: Record<string, Tensor> = { ...inputs, dy: rows(dy) };
    for (const name of BLOCK_SAVED) known[name] = rows(saved[name]);
    known['probabilities'] = { data: saved['probabilities'], dims: [batch.B, config.n_heads, batch.T, batch.T] };
    const backward = blockBackwardProgram(settings, batch);
    const { dx, ...rest } = await run(onnx, backward, pick(backward, known));
    for (const name of BLOCK_ROW_GRADIENTS) known[name] = rows(rest[name] ?? dy);
    const pass = blockWeightGradientsProgram(settings, batch, { accumulate: false });
    const written = await run(onnx, pass, pick(pass, known));

    expect(difference(dx, derived['x']), 'dx').toBeLessThan(TOLERANCE);
    for (const name of names.slice(1)) {
      expect(difference(written[`${name}.gradient`], derived[name]), name).toBeLessThan(TOLERANCE);
    }
  });

  test('the head', async () => {
    const forward = headLossProgram(config, rowCount);
    const inputs = randomInputs(forward, { seed: 9, indexLimit: config.vocab_size });
    const names = ['x', 'ln_f.weight', 'ln_f.bias', 'projection'];
    const dy = new Float32Array(rowCount).fill(1 / head.tokenCount);
    const derived = derivedGradients(forward, inputs, { names, output: 'loss', dy });
    const rows = await run(onnx, headTrainProgram(config, head), inputs);
    const passOf = async (pass: Graph): Promise<Record<string, Float32Array>> => {
      const saved = pass.inputs.map(({ name, dims: [first, width] }) => {
        if (!Object.hasOwn(rows, name)) return [name, inputs[name]];
        const data = rows[name];
        return [
          name,
          { data, dims: typeof first === 'number' ? [first, width] : [data.length / Number(width), width] },
        ];
      });
      return await run(onnx, pass, Object.fromEntries(saved) as Record<string, Tensor>);
    };
    const { gradient } = await passOf(projectionGradientProgram(config, { ...head, accumulate: false }));
    const written: Record<string, Float32Array> = {
      dx: rows['dx'],
      'projection.gradient': gradient,
      ...(await passOf(headNormGradientsProgram(config, { ...head, accumulate: false }))),
    };
    subtractTargets(gradient, {
      targets: Uint32Array.from(inputs['target'].data as BigInt64Array, Number),
      normalized: rows['normalized'],
      tokenCount: head.tokenCount,
    });
    for (const name of names) {
      const own = written[name === 'x' ? 'dx' : `${name}.gradient`];
      expect(difference(own, derived[name]), name).toBeLessThan(TOLERANCE);
    }
  });
});
