// Checks AdamW's program against the textbook's formula in double precision, and for step sizes where the program's folding could
// go wrong.

import { expect, test } from 'vitest';
import { adamwProgram, adamwScalars, type AdamwStep } from '../../../src/model/programs/adamw.ts';
import type { Tensor, Tensors } from '../../../src/workers/engines/engine.ts';
import { loadEngine } from '../../../src/workers/engines/choice.ts';

const STEP: AdamwStep = { step: 3, lr: 4e-4, weightDecay: 0.1, gradScale: 0.5, beta1: 0.9, beta2: 0.999, eps: 1e-8 };
/** Parameters of which the last two have never had a gradient. The last one is zero. */
const PARAMETERS = {
  w: Float32Array.of(0.5, -0.25, 1e-3, 2, 0),
  g: Float32Array.of(0.1, -3, 1e-6, 0, 0),
  m: Float32Array.of(0.01, -0.2, 1e-7, 0, 0),
  v: Float32Array.of(1e-4, 0.5, 1e-12, 0, 0),
};

async function update(step: AdamwStep): Promise<{ w: Float32Array; m: Float32Array; v: Float32Array }> {
  const program = await (await loadEngine('onnx')).compile(adamwProgram());
  const vector = (data: Float32Array): Tensor => ({ data, dims: [data.length] });
  const [w, m, v] = [PARAMETERS.w.slice(), PARAMETERS.m.slice(), PARAMETERS.v.slice()];
  const scalars: Tensors = Object.fromEntries(
    Object.entries(adamwScalars(step)).map(([name, value]) => [name, { data: Float32Array.of(value), dims: [] }]),
  );
  await program.run(
    { w: vector(w), g: vector(PARAMETERS.g), m: vector(m), v: vector(v), ...scalars },
    { wNext: vector(w), mNext: vector(m), vNext: vector(v) },
  );
  await program.release();
  return { w, m, v };
}

test.each([1e-20, 1e-6, 4e-4, 1])('a step with learning rate %f is the formula', async (lr) => {
  const { step, weightDecay, gradScale, beta1, beta2, eps } = STEP;
  const found = await update({ ...STEP, lr });
  for (const [i, weight] of PARAMETERS.w.entries()) {
    const g = PARAMETERS.g[i] * gradScale;
    const m = beta1 * PARAMETERS.m[i] + (1 - beta1) * g;
    const v = beta2 * PARAMETERS.v[i] + (1 - beta2) * g * g;
    const change = (lr * (m / (1 - beta1 ** step))) / (Math.sqrt(v / (1 - beta2 ** step)) + eps);
    const w = weight * (1 - lr * weightDecay) - change;
    for (const [name, wanted] of Object.entries({ w, m, v })) {
      const value = found[name as 'w'][i];
      expect(Math.abs(value - wanted), `${name}[${i}] is ${value}`).toBeLessThanOrEqual(1e-6 * Math.abs(wanted));
    }
  }
});

test.each([0, 1e-40])('with learning rate %f no weight changes', async (lr) => {
  const { w } = await update({ ...STEP, lr });
  expect(w).toEqual(PARAMETERS.w);
});
