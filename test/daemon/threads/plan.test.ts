// Checks which worker owns which blocks: the balance for the models that people have, and the properties of every plan.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { planStages } from '../../../src/daemon/threads/plan.ts';
import { resolveConfig, type GptConfig } from '../../../src/model/config.ts';
import { countParameters } from '../../../src/model/count.ts';

const GPT2_124M = resolveConfig('GPT_CONFIG_124M');

const ranges = (config: GptConfig, workers: number): [number, number][] =>
  planStages(config, workers).map(({ firstBlock, endBlock }) => [firstBlock, endBlock]);

test('two workers share 124M as nine blocks, and three with the head, which costs as much as 5.4 blocks', () => {
  expect(planStages(GPT2_124M, 2)).toMatchObject([
    { worker: 0, firstBlock: 0, endBlock: 9, embeds: true, head: false },
    { worker: 1, firstBlock: 9, endBlock: 12, embeds: false, head: true },
  ]);
  expect(planStages(GPT2_124M, 1)).toMatchObject([{ firstBlock: 0, endBlock: 12, embeds: true, head: true }]);
});

test('more workers than blocks make as many stages as blocks', () => {
  expect(ranges({ ...GPT2_124M, n_layers: 2 }, 8)).toEqual([
    [0, 1],
    [1, 2],
  ]);
});

test('tied embeddings live with the head', () => {
  const plan = planStages(resolveConfig('gpt2'), 3);
  expect(plan.map(({ embeds, head }) => ({ embeds, head }))).toEqual([
    { embeds: false, head: false },
    { embeds: false, head: false },
    { embeds: true, head: true },
  ]);
});

test('a plan for no workers is refused with a sentence', () => {
  expect(() => planStages(GPT2_124M, 0)).toThrow(
    expect.objectContaining({
      code: 'invalid_spec',
      message: 'Cannot split 12 blocks among 0 workers: at least 1 is needed.',
    }),
  );
});

test('every plan covers every block and parameter once, in order, and no other plan has a smaller largest stage', () => {
  const config = fc.record({
    layers: fc.integer({ min: 1, max: 9 }),
    workers: fc.integer({ min: 1, max: 12 }),
    vocabulary: fc.integer({ min: 1, max: 60_000 }),
    tied: fc.boolean(),
  });
  fc.assert(
    fc.property(config, ({ layers, workers, vocabulary, tied }) => {
      const model: GptConfig = {
        ...GPT2_124M,
        emb_dim: 96,
        n_layers: layers,
        vocab_size: vocabulary,
        tie_weights: tied,
      };
      const plan = planStages(model, workers);
      expect(plan).toHaveLength(Math.min(layers, workers));
      expect(plan.map(({ worker }) => worker)).toEqual(plan.map((_, i) => i));
      expect(plan.flatMap(({ firstBlock, endBlock }) => blocks(firstBlock, endBlock))).toEqual(blocks(0, layers));
      expect(plan.every(({ firstBlock, endBlock }) => endBlock > firstBlock)).toBe(true);
      expect(plan.filter(({ head }) => head)).toEqual([plan.at(-1)]);
      expect(plan.filter(({ embeds }) => embeds)).toEqual([tied ? plan.at(-1) : plan[0]]);
      expect(plan.reduce((sum, { params }) => sum + params, 0)).toBe(countParameters(model).total_params);
      const costs = plan.map(({ firstBlock, endBlock }) => endBlock - firstBlock);
      expect(largestCost(costs, model)).toBe(smallestLargestCost(model, plan.length));
    }),
    { numRuns: 200 },
  );
});

const blocks = (first: number, end: number): number[] => Array.from({ length: end - first }, (_, i) => first + i);

/** Returns the multiply-adds of a row in the costliest stage. */
function largestCost(blockCounts: readonly number[], { emb_dim: D, vocab_size: V }: GptConfig): number {
  return Math.max(...blockCounts.map((count, i) => count * 12 * D * D + (i === blockCounts.length - 1 ? V * D : 0)));
}

/**
 * Tries every number of blocks beside the head. The other stages share the remaining blocks as evenly as whole blocks can be
 * shared.
 */
function smallestLargestCost(model: GptConfig, stageCount: number): number {
  const layers = model.n_layers;
  if (stageCount === 1) return largestCost([layers], model);
  const tried = blocks(1, layers - stageCount + 2).map((withHead) =>
    largestCost([Math.ceil((layers - withHead) / (stageCount - 1)), withHead], model),
  );
  return Math.min(...tried);
}
