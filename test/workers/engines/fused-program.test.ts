// Checks one loop of WebAssembly against the engine that runs the same graph node by node: both give the same bits, wherever the
// arrays lie.

import { afterAll, describe, expect, test } from 'vitest';
import { adamwProgram, adamwScalars } from '../../../src/model/programs/adamw.ts';
import { GraphBuilder } from '../../../src/model/programs/graph.ts';
import type { Tensor } from '../../../src/workers/engines/engine.ts';
import { FusedProgram } from '../../../src/workers/engines/fused-program.ts';
import { loadEngine } from '../../../src/workers/engines/choice.ts';
import { noise } from './random-inputs.ts';

const NAMES = ['w', 'g', 'm', 'v'] as const;
const SCALARS = adamwScalars({
  step: 7,
  lr: 3e-3,
  weightDecay: 0.1,
  gradScale: 0.3,
  beta1: 0.9,
  beta2: 0.999,
  eps: 1e-8,
});
const engine = await loadEngine('onnx');
const reference = await engine.compile(adamwProgram());
afterAll(() => reference.release());

type Parameters = Record<(typeof NAMES)[number], Float32Array>;

/** Returns numbers of all sizes, some of them zero. Second moments are not negative. */
function parameters(length: number): Parameters {
  const [w, g, m, v] = NAMES.map((_, i) => noise(length, 40 + i).map((x, at) => (at % 11 === 0 ? 0 : x ** 5)));
  return { w, g, m, v: v.map(Math.abs) };
}

async function expected({ w, g, m, v }: Parameters): Promise<Float32Array[]> {
  const vector = (data: Float32Array): Tensor => ({ data, dims: [data.length] });
  const scalars = Object.entries(SCALARS).map(([name, value]) => [name, { data: Float32Array.of(value), dims: [] }]);
  const found = await reference.run({
    w: vector(w),
    g: vector(g),
    m: vector(m),
    v: vector(v),
    ...(Object.fromEntries(scalars) as Record<string, Tensor>),
  });
  return ['wNext', 'mNext', 'vNext'].map((name) => found[name]);
}

const update = (program: FusedProgram, { w, g, m, v }: Parameters): void =>
  program.run({ inputs: { w, g, m, v }, into: { wNext: w, mNext: m, vNext: v }, scalars: SCALARS });

/** Writes a tensor's first values into the program's arrays. */
function fill([w, m, v]: readonly Float32Array[], initial: Parameters): void {
  w.set(initial.w);
  m.set(initial.m);
  v.set(initial.v);
}

const bytesOf = ({ buffer, byteOffset, byteLength }: Float32Array): Buffer =>
  Buffer.from(buffer, byteOffset, byteLength);

function expectBits(found: readonly Float32Array[], wanted: readonly Float32Array[]): void {
  for (const [i, array] of found.entries()) expect(bytesOf(array).equals(bytesOf(wanted[i])), `output ${i}`).toBe(true);
}

describe.each([1, 3, 4, 1000, 32768, 70001])('AdamW over %i elements', (length) => {
  test('has the same bits in memory of the program, with gradients from elsewhere', async () => {
    const program = new FusedProgram(adamwProgram());
    const [[w, m, v]] = program.allocate([[length, length, length]]);
    const initial = parameters(length);
    fill([w, m, v], initial);
    update(program, { w, g: initial.g, m, v });
    expectBits([w, m, v], await expected(initial));
  });

  test('has the same bits in any memory', async () => {
    const own = parameters(length);
    const wanted = await expected(own);
    update(new FusedProgram(adamwProgram()), own);
    expectBits([own.w, own.m, own.v], wanted);
  });
});

test('a part of an array leaves its neighbours alone', async () => {
  const program = new FusedProgram(adamwProgram());
  const [[w, m, v]] = program.allocate([[40, 40, 40]]);
  const initial = parameters(40);
  const part = (array: Float32Array): Float32Array => array.subarray(3, 13);
  fill([w, m, v], initial);
  update(program, { w: part(w), g: part(initial.g), m: part(m), v: part(v) });
  const wanted = await expected(initial);
  for (const [i, [array, name]] of [[w, 'w'] as const, [m, 'm'] as const, [v, 'v'] as const].entries()) {
    const mixed = initial[name].slice();
    mixed.set(part(wanted[i]), 3);
    expectBits([array], [mixed]);
  }
});

test('groups that do not fit into one memory lie in several, and a group that fits into none has arrays of its own', async () => {
  const program = new FusedProgram(adamwProgram());
  const gibibyte = 2 ** 28;
  const groups = program.allocate([
    ...[[gibibyte], [gibibyte], [gibibyte], [8, 8, 8]],
    ...[[gibibyte], [8, 8, 8]],
    [gibibyte, gibibyte, gibibyte, gibibyte, 8],
    [8, 8, 8],
  ]);
  const buffers = groups.map((arrays) => new Set(arrays.map(({ buffer }) => buffer)));
  expect(buffers.map(({ size }) => size)).toEqual([1, 1, 1, 1, 1, 1, 5, 1]);
  expect(new Set(groups.flat().map(({ buffer }) => buffer)).size).toBe(8);
  expect(groups[6].map(({ length }) => length)).toEqual([gibibyte, gibibyte, gibibyte, gibibyte, 8]);
  // Addresses reach beyond what a signed integer holds.
  expect(groups[3][0].byteOffset).toBeGreaterThan(2 ** 31);
  const initial = parameters(8);
  const wanted = await expected(initial);
  for (const [w, m, v] of [groups[3], groups[5], groups[7]]) {
    fill([w, m, v], initial);
    update(program, { w, g: initial.g, m, v });
    expectBits([w, m, v], wanted);
  }
});

test('arrays of different lengths and graphs that are not element-wise are refused', () => {
  const program = new FusedProgram(adamwProgram());
  expect(() => update(program, { ...parameters(8), g: new Float32Array(7) })).toThrow('differ in length');
  const softmax = new GraphBuilder('softmax');
  softmax.output('y', softmax.node('Softmax', [softmax.input('x', ['n'])]));
  expect(() => new FusedProgram(softmax.build())).toThrow('Softmax of softmax is not element-wise');
  const rootless = new GraphBuilder('rootless');
  rootless.output('y', rootless.node('Add', [rootless.input('x', ['n']), '']));
  expect(() => new FusedProgram(rootless.build())).toThrow('rootless has no value ""');
  const whole = new GraphBuilder('whole');
  whole.output('y', whole.node('Sqrt', [whole.input('x', ['n'], 'int64')]));
  expect(() => new FusedProgram(whole.build())).toThrow('x of whole is of type int64');
  const doubled = new GraphBuilder('doubled');
  doubled.output('y', doubled.node('Mul', [doubled.input('x', ['n']), doubled.scalar(2)]));
  expect(() => new FusedProgram(doubled.build())).toThrow('doubled has constants');
});
