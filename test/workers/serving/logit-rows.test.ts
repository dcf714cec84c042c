// Checks what an engine reports of rows of logits as long as GPT-2's vocabulary: the numbers are right, have the same bits
// whatever is beside a row, and show where a logit is not a number.

import { describe, expect, test } from 'vitest';
import { GraphBuilder } from '../../../src/model/programs/graph.ts';
import { logitOutputs } from '../../../src/model/programs/head.ts';
import { logitRows, type LogitRow } from '../../../src/model/sampling.ts';
import { loadEngine } from '../../../src/workers/engines/choice.ts';

const V = 50257;
const [onnx, tensorflow] = [await loadEngine('onnx'), await loadEngine('tensorflow-wasm')];

const rowOf = (seed: number): Float32Array =>
  Float32Array.from({ length: V }, (_, id) => 3 * Math.sin(seed * 12.9898 + id * 78.233) + Math.cos(id * id));

describe.each([
  ['onnx, one thread', onnx, 1],
  ['onnx, two threads', onnx, 2],
  ['tensorflow', tensorflow, 1],
] as const)('%s', (_, engine, threadCount) => {
  async function told(rows: readonly Float32Array[]): Promise<LogitRow[]> {
    const g = new GraphBuilder('rows');
    logitOutputs(g, g.node('Identity', [g.input('x', ['M', V])]));
    const program = await engine.compile(g.build(), { threadCount });
    const data = new Float32Array(rows.length * V);
    for (const [i, row] of rows.entries()) data.set(row, i * V);
    const outputs = await program.run({ x: { data, dims: [rows.length, V] } });
    await program.release();
    return logitRows(outputs);
  }

  test('the largest logit and the sum of exponentials are those of a double-precision sum, to 1e-5', async () => {
    const rows = [1, 2, 3].map(rowOf);
    for (const [i, { logits, max, logSum }] of (await told(rows)).entries()) {
      expect(logits).toEqual(rows[i]);
      expect(max).toBe(Math.max(...rows[i]));
      const exact = Math.log(rows[i].reduce((sum, logit) => sum + Math.exp(logit - max), 0));
      expect(Math.abs(logSum - exact)).toBeLessThan(1e-5);
    }
  });

  test('a row has the same bits alone and at any place among others', async () => {
    const rows = Array.from({ length: 17 }, (_, seed) => rowOf(seed));
    const together = await told(rows);
    for (const i of [0, 1, 7, 16]) expect(await told([rows[i]])).toEqual([together[i]]);
    expect(await told(rows.slice(3, 8))).toEqual(together.slice(3, 8));
  });

  test.each([NaN, Infinity, -Infinity])(
    'a logit of %d leaves its own row, and no other, without a largest logit',
    async (bad) => {
      const rows = [1, 2, 3].map(rowOf);
      rows[1][40_000] = bad;
      expect((await told(rows)).map(({ max }) => Number.isFinite(max))).toEqual([true, false, true]);
    },
  );
});
