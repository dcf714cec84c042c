// Checks the estimates of memory: they are exact where they count parameters, they grow with everything that costs memory, and a
// job that needs too much is refused with the figures.

import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';
import { describe, expect, test } from 'vitest';
import {
  admit,
  loadingBytes,
  optimizerBytes,
  servingBytes,
  trainingBytes,
  trainingNeed,
  weightsBytes,
  type TrainingShape,
} from '../../../src/daemon/threads/memory.ts';
import { resolveConfig, type ConfigFields, type GptConfig } from '../../../src/model/config.ts';

const BASE = resolveConfig({ vocab_size: 1000, context_length: 64, emb_dim: 64, n_heads: 4, n_layers: 4 });
const SHAPE: TrainingShape = { batchSize: 8, microBatchSize: 1, contextLength: 64, stageCount: 2 };
const withFields = (fields: ConfigFields): GptConfig => resolveConfig({ ...BASE, ...fields });

test('124M has 652 MB of weights and twice that in moments', () => {
  const config = resolveConfig('GPT_CONFIG_124M');
  expect(weightsBytes(config)).toBe(163_009_536 * 4);
  expect(optimizerBytes(config)).toBe(2 * 163_009_536 * 4);
});

test('moments and gradients count for the trained tensors only', () => {
  const isTrained = (name: string): boolean => name.startsWith('h.3.mlp.c_fc.');
  const trained = (64 * 256 + 256) * 4;
  expect(optimizerBytes(BASE, { isTrained })).toBe(2 * trained);
  const untrained = weightsBytes(BASE) - trained;
  // An untrained tensor has no gradient and no two moments, and a snapshot sets aside no copies of its moments.
  expect(trainingBytes(BASE, SHAPE) - trainingBytes(BASE, SHAPE, { isTrained })).toBe(5 * untrained);
});

describe('a larger model needs more of everything', () => {
  test.each<[string, ConfigFields]>([
    ['vocabulary', { vocab_size: 2000 }],
    ['context', { context_length: 128 }],
    ['width', { emb_dim: 128 }],
    ['depth', { n_layers: 8 }],
    ['biases', { qkv_bias: true }],
  ])('%s', (_what, fields) => {
    const larger = withFields(fields);
    expect(weightsBytes(larger)).toBeGreaterThan(weightsBytes(BASE));
    expect(servingBytes(larger)).toBeGreaterThan(servingBytes(BASE));
    const shape = { ...SHAPE, contextLength: larger.context_length };
    expect(trainingBytes(larger, shape)).toBeGreaterThan(trainingBytes(BASE, SHAPE));
  });
});

describe('training needs more memory', () => {
  test.each<[string, Partial<TrainingShape>]>([
    ['for larger micro-batches', { microBatchSize: 8 }],
    ['for longer sequences', { contextLength: 128 }],
    ['for more stages, which hold more micro-batches in flight', { stageCount: 4 }],
  ])('%s', (_what, fields) => {
    expect(trainingBytes(BASE, { ...SHAPE, ...fields })).toBeGreaterThan(trainingBytes(BASE, SHAPE));
  });

  test('than serving, and than weights, gradients and moments', () => {
    expect(trainingBytes(BASE, SHAPE)).toBeGreaterThan(servingBytes(BASE));
    expect(trainingBytes(BASE, SHAPE)).toBeGreaterThan(4 * weightsBytes(BASE));
  });
});

test('a job that fits to the byte is admitted, and one byte more is refused with both figures', () => {
  expect(() => admit({ bytes: 4e9, what: 'Training m' }, 4e9)).not.toThrow();
  expect(() => admit({ bytes: 4e9 + 1, what: 'Training m' }, 4e9)).toThrow(
    expect.objectContaining({
      code: 'out_of_memory',
      message: expect.stringMatching(/^Training m needs about 4\.0 GB and the daemon may use 4\.0 GB: /) as string,
    }),
  );
});

describe('a training that does not fit', () => {
  const shape = { ...SHAPE, batchSize: 12, microBatchSize: 12 };
  const bytesOf = (microBatchSize: number): number => trainingBytes(BASE, { ...shape, microBatchSize });
  const refusal = (budgetBytes: number): unknown => {
    try {
      admit(trainingNeed(BASE, shape, { model: 'm', budgetBytes }), budgetBytes);
    } catch (error) {
      return error;
    }
    return null;
  };

  test('is told the largest micro-batch that divides the batch and fits', () => {
    expect(refusal(bytesOf(12))).toBeNull();
    expect(refusal(bytesOf(4))).toMatchObject({
      code: 'out_of_memory',
      message: expect.stringMatching(
        /^Training m with micro-batches of 12 needs about .* that fits is 4: --micro-batch-size 4\.$/,
      ) as string,
    });
    expect(refusal(bytesOf(6) - 1)).toMatchObject({ message: expect.stringContaining('that fits is 4:') as string });
  });

  test('even with the smallest micro-batch is told so', () => {
    expect(refusal(bytesOf(1) - 1)).toMatchObject({
      message: expect.stringContaining('Not even micro-batches of one sequence of 64 tokens fit') as string,
    });
  });
});

test.each([null, 'int8', 'int4'] as const)(
  'what a load in format %s takes at its peak is within the estimate, and more than a third of it',
  async (quantization) => {
    const config = withFields({ vocab_size: 20_000, emb_dim: 512, n_heads: 8 });
    const script = path.join(import.meta.dirname, 'serving-peak.js');
    const dist = path.resolve(import.meta.dirname, '../../../dist');
    const args = [script, dist, JSON.stringify(quantization), JSON.stringify(config)];
    const { stdout } = await promisify(execFile)(process.execPath, args);
    const estimate = servingBytes(config, quantization) + loadingBytes(config, quantization);
    expect(Number(stdout) / estimate).toBeLessThan(1);
    expect(Number(stdout) / estimate).toBeGreaterThan(1 / 3);
  },
  60_000,
);
