// Checks the TensorFlow.js engine on its own: its refusals and their errors, the forms of operators that no program uses, against
// ONNX Runtime, and that a thousand training steps leave no tensor behind.

import * as tf from '@tensorflow/tfjs-core';
import { describe, expect, test } from 'vitest';
import type { GptConfig } from '../../../src/model/config.ts';
import { GraphBuilder, MICROSOFT, type Graph, type Value } from '../../../src/model/programs/graph.ts';
import { initialTensors } from '../../../src/model/init.ts';
import { loadEngine } from '../../../src/workers/engines/choice.ts';
import { updateUnits, type MicroBatch } from '../../../src/workers/training/messages.ts';
import { TrainStage } from '../../../src/workers/training/stage.ts';
import { difference, noise, randomInputs } from './random-inputs.ts';

const onnx = await loadEngine('onnx');
const tensorflow = await loadEngine('tensorflow-wasm');

const graphOf = (name: string, emit: (g: GraphBuilder) => Value | readonly Value[]): Graph => {
  const g = new GraphBuilder(name);
  for (const [i, value] of [emit(g)].flat().entries()) g.output(`y${i}`, value);
  return g.build();
};

describe('operators agree with ONNX Runtime', () => {
  const rows = (g: GraphBuilder): Value => g.input('x', [5, 8]);
  const cases: Readonly<Record<string, (g: GraphBuilder) => Value | readonly Value[]>> = {
    'Gemm with both sides transposed, factors and a row': (g) =>
      g.node('Gemm', [g.input('a', [4, 3]), g.input('b', [6, 4]), g.input('c', [6])], {
        transA: 1,
        transB: 1,
        alpha: { float: 0.5 },
        beta: { float: -2 },
      }),
    'Gemm with a transposed constant': (g) =>
      g.node('Gemm', [rows(g), g.constant(noise(24, 3), [3, 8]), g.input('c', [5, 3])], { transB: 1 }),
    'MatMul of three axes and two': (g) => g.node('MatMul', [g.input('a', [2, 3, 4]), g.input('b', [4, 5])]),
    'MatMul of five axes, one of them shared': (g) =>
      g.node('MatMul', [g.input('a', [1, 3, 1, 2, 4]), g.input('b', [1, 3, 2, 4, 5])]),
    'MatMul of four axes': (g) => g.node('MatMul', [g.input('a', [2, 2, 3, 4]), g.input('b', [2, 2, 4, 5])]),
    'LayerNormalization with all three outputs': (g) =>
      g.nodes('LayerNormalization', [rows(g), g.input('w', [8]), g.input('b', [8])], 3, { axis: -1 }),
    'Gelu by the error function': (g) => g.node('Gelu', [rows(g)]),
    'Gelu by tanh': (g) => g.node('Gelu', [rows(g)], { approximate: 'tanh' }),
    FastGelu: (g) => g.node('FastGelu', [rows(g), g.input('b', [8])], {}, { domain: MICROSOFT }),
    QuickGelu: (g) => g.node('QuickGelu', [rows(g)], { alpha: { float: 1.5 } }, { domain: MICROSOFT }),
    'Softmax over an inner axis': (g) => g.node('Softmax', [g.input('x', [2, 5, 3])], { axis: 1 }),
    'LogSoftmax over the first axis': (g) => g.node('LogSoftmax', [rows(g)], { axis: 0 }),
    'Split into named lengths': (g) => g.nodes('Split', [rows(g), g.integers([2, 5, 1])], 3, { axis: -1 }),
    'Split into equal parts': (g) => g.nodes('Split', [rows(g)], 2, { axis: 1, num_outputs: 2 }),
    'Slice from the end': (g) =>
      g.node('Slice', [rows(g), g.integers([-3, 1]), g.integers([1000, -1]), g.integers([0, 1])]),
    'Reshape with a kept and an open length': (g) => g.node('Reshape', [g.input('x', [2, 3, 4]), g.integers([0, -1])]),
    Unsqueeze: (g) => g.node('Unsqueeze', [rows(g), g.integers([0, -1])]),
    Squeeze: (g) => g.node('Squeeze', [g.input('x', [1, 3, 1, 2]), g.integers([0, -2])]),
    Expand: (g) => g.node('Expand', [g.input('x', [3, 1]), g.integers([2, 1, 4])]),
    'Concat along the last axis': (g) => g.node('Concat', [rows(g), g.input('z', [5, 2])], { axis: -1 }),
    'Gather of rows': (g) => g.node('Gather', [rows(g), g.input('at', [3], 'int64')], { axis: 0 }),
    'GatherElements of two in a row': (g) =>
      g.node('GatherElements', [rows(g), g.input('at', [5, 2], 'int64')], { axis: 1 }),
    'ScatterElements, added': (g) =>
      g.node('ScatterElements', [rows(g), g.input('at', [5, 2], 'int64'), g.input('u', [5, 2])], {
        axis: 1,
        reduction: 'add',
      }),
    'reductions over all and over one axis': (g) => {
      const x = rows(g);
      return [
        g.node('ReduceMax', [x], { keepdims: 0 }),
        g.node('ReduceMin', [x, g.integers([0])]),
        g.node('ReduceMean', [x, g.integers([-1])]),
        g.node('ReduceSumSquare', [x, g.integers([1])], { keepdims: 0 }),
      ];
    },
    'Where with a mask, a comparison and casts': (g) => {
      const x = rows(g);
      const kept = g.node('Cast', [g.input('mask', [5, 8], 'uint8')], { to: 9 });
      const positive = g.node('Cast', [g.node('Greater', [x, g.scalar(0)])], { to: 1 });
      return [g.node('Where', [kept, x, g.scalar(-1)]), g.node('Add', [positive, g.scalar(1)])];
    },
    'elementwise chains': (g) => {
      const x = g.node('Abs', [rows(g)]);
      const power = g.node('Pow', [g.node('Add', [x, g.scalar(0.5)]), g.scalar(1.5)]);
      const chain = ['Sqrt', 'Log', 'Exp', 'Reciprocal', 'Tanh', 'Neg', 'Sigmoid', 'Identity'];
      return [chain.reduce<Value>((value, op) => g.node(op, [value]), power), g.node('Max', [x, g.scalar(0.5), power])];
    },
  };

  test.each(Object.keys(cases))('%s', async (name) => {
    const graph = graphOf(name, cases[name]);
    const inputs = randomInputs(graph, { seed: 4, indexLimit: 5 });
    const [reference, own] = [await onnx.compile(graph), await tensorflow.compile(graph)];
    const [expected, values] = [await reference.run(inputs), await own.run(inputs)];
    for (const [output, data] of Object.entries(expected)) {
      expect(difference(values[output], data), output).toBeLessThan(1e-5);
    }
    await reference.release();
    await own.release();
  });

  test.each([4, 8])('MatMulNBits with weights of %d bits, with and without zero points', async (bits) => {
    const [K, N, block_size] = [64, 6, 32];
    const blocks = K / block_size;
    const bytes = (length: number, seed: number): Uint8Array =>
      Uint8Array.from(noise(length, seed), (value) => Math.floor((value + 1) * 128));
    for (const zeroPoints of [false, true]) {
      const graph = graphOf('quantized', (g) => {
        const b = g.constant(bytes((N * K * bits) / 8, 1), [N, blocks, (block_size * bits) / 8]);
        const scales = g.constant(noise(N * blocks, 2), [N * blocks]);
        const zeros = g.constant(bytes((N * blocks * bits) / 8, 3), [(N * blocks * bits) / 8]);
        const inputs = [g.input('x', [3, K]), b, scales, ...(zeroPoints ? [zeros] : [])];
        // Level 1 keeps ONNX Runtime's products in float32.
        return g.node('MatMulNBits', inputs, { K, N, bits, block_size, accuracy_level: 1 }, { domain: MICROSOFT });
      });
      const inputs = randomInputs(graph, { seed: 5 });
      const [reference, own] = [await onnx.compile(graph), await tensorflow.compile(graph)];
      const [expected, values] = [await reference.run(inputs), await own.run(inputs)];
      expect(difference(values['y0'], expected['y0'])).toBeLessThan(1e-5);
    }
  });
});

describe('what it cannot do is refused by name', () => {
  const refused: readonly (readonly [string, (g: GraphBuilder) => Value, string])[] = [
    [
      'an operator',
      (g) => g.node('Einsum', [g.input('x', [2])]),
      'cannot run Einsum in "bad": the operator is not known',
    ],
    ['another domain', (g) => g.node('Gelu', [g.input('x', [2])], {}, { domain: MICROSOFT }), 'operator is not known'],
    [
      'an attribute',
      (g) => g.node('Softmax', [g.input('x', [2])], { temperature: 2 }),
      'cannot run Softmax in "bad": it has the attribute temperature, which is not known',
    ],
    ['an input', (g) => g.node('Sqrt', [g.input('x', [2]), g.scalar(1)]), 'it has an input 1, which is not known'],
    [
      'a shape that is computed',
      (g) => g.node('Reshape', [g.input('x', [2]), g.input('s', [1], 'int64')]),
      'input 1 is not a constant',
    ],
    [
      '3 bits',
      (g) =>
        g.node('MatMulNBits', [g.input('x', [1, 32]), g.scalar(1), g.scalar(1)], { bits: 3 }, { domain: MICROSOFT }),
      '3 bits',
    ],
  ];
  test.each(refused)('%s', async (_, emit, message) => {
    await expect(tensorflow.compile(graphOf('bad', emit))).rejects.toThrow(message);
  });

  test('inputs that are missing, of another shape or out of range', async () => {
    const before = tf.memory().numTensors;
    const program = await tensorflow.compile(
      graphOf('look-up', (g) =>
        g.node('GatherElements', [g.input('x', [2, 3]), g.input('at', [2, 1], 'int64')], { axis: 1 }),
      ),
    );
    const x = { data: noise(6, 1), dims: [2, 3] };
    const at = (...ids: bigint[]): { data: BigInt64Array; dims: number[] } => ({
      data: BigInt64Array.from(ids),
      dims: [2, 1],
    });
    await expect(program.run({ x })).rejects.toThrow('"look-up" has no input at.');
    await expect(program.run({ x: { ...x, dims: [3, 2] }, at: at(0n, 0n) })).rejects.toThrow('(2, 3) is wanted');
    await expect(program.run({ x, at: at(0n, 3n) })).rejects.toThrow('index 3 is not in a row of 3 values');
    await expect(program.run({ x, at: at(0n, 2n ** 40n) })).rejects.toThrow('does not fit into 32 bits');
    expect((await program.run({ x, at: at(2n, -3n) }))['y0']).toEqual(Float32Array.of(x.data[2], x.data[3]));
    await program.release();
    expect(tf.memory().numTensors).toBe(before);
  });
});

test('an output is written where it is asked to be', async () => {
  const program = await tensorflow.compile(
    graphOf('twice', (g) => g.node('Add', [g.input('x', ['n']), g.input('z', ['n'])])),
  );
  const memory = Float32Array.of(1, 2, 3, 4);
  const x = { data: memory.subarray(1, 3), dims: [2] };
  expect(await program.run({ x, z: x }, { y0: x })).toEqual({});
  expect(memory).toEqual(Float32Array.of(1, 4, 6, 4));
  await program.release();
});

test('a thousand training steps leave no tensor behind', async () => {
  const config: GptConfig = {
    vocab_size: 11,
    context_length: 4,
    emb_dim: 8,
    n_heads: 2,
    n_layers: 1,
    drop_rate: 0.1,
    qkv_bias: true,
    tie_weights: false,
  };
  const tokens = new SharedArrayBuffer(64);
  new Uint16Array(tokens).set(Array.from({ length: 32 }, (_, i) => (i * 7) % 11));
  const initial = new Map(
    [...initialTensors(config, { seed: 1, scheme: 'gpt2' })].map(({ name, data }) => [name, data]),
  );
  const range = { firstBlock: 0, endBlock: 1, embeds: true, head: true };
  const before = tf.memory();
  const stage = new TrainStage(
    tensorflow,
    {
      config,
      batchSize: 2,
      microBatchSize: 1,
      contextLength: 4,
      seed: 1,
      tokens,
      wideTokens: false,
      optimizerState: false,
      stage: range,
    },
    ({ name }, _, into) => into.set(initial.get(name)!),
  );
  const step = async (number: number): Promise<number> => {
    let loss = 0;
    for (const index of [0, 1]) {
      const micro: MicroBatch = { index, step: number, firstSequence: index, starts: [(number * 5 + index * 9) % 27] };
      const { losses } = await stage.forward(micro, stage.embed(micro, { train: true }));
      for (const row of losses!) loss += row / 8;
      const dx = await stage.backward(micro, null);
      await stage.allWeightGradients(micro);
      stage.embedBackward(micro, dx);
    }
    stage.finish();
    const adamw = { lr: 1e-2, weightDecay: 0.1, gradScale: 1, beta1: 0.9, beta2: 0.99, eps: 1e-8 };
    const update = { step: { step: number, ...adamw }, decayAll: false };
    for (const unit of updateUnits(range)) stage.optimizer.update(update, unit);
    return loss;
  };
  const heapBytes = (): number => (tf.backend() as unknown as { wasm: { HEAPU8: Uint8Array } }).wasm.HEAPU8.length;
  const first = await step(1);
  const [started, heap] = [tf.memory(), heapBytes()];
  let last = first;
  for (let number = 2; number <= 1000; number++) last = await step(number);
  expect(last).toBeLessThan(first / 2);
  expect(tf.memory()).toMatchObject({ numTensors: started.numTensors, numBytes: started.numBytes });
  expect(heapBytes()).toBe(heap);
  await stage.close();
  expect(tf.memory().numTensors).toBe(before.numTensors);
}, 300_000);
