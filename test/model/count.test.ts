// Checks parameter counts against the published ones, and against the table from which they are counted.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { PRESETS, type PresetName } from '../../src/model/config.ts';
import { countBytes, countMatrices, countParameters } from '../../src/model/count.ts';
import { tensorTable } from '../../src/model/tensors.ts';

test.each<[PresetName, number]>([
  ['GPT_CONFIG_124M', 163009536],
  ['GPT_CONFIG_355M', 406212608],
  ['GPT_CONFIG_774M', 838220800],
  ['GPT_CONFIG_1558M', 1637792000],
  ['gpt2', 124439808],
  ['gpt2-medium', 354823168],
  ['gpt2-large', 774030080],
  ['gpt2-xl', 1557611200],
])('%s has %i parameters', (preset, total) => {
  expect(countParameters(PRESETS[preset]).total_params).toBe(total);
});

test('the parts of GPT_CONFIG_124M have their published counts', () => {
  expect(countParameters(PRESETS.GPT_CONFIG_124M)).toEqual({
    token_embeddings: 38597376,
    position_embeddings: 786432,
    embedding_total: 39383808,
    mha_per_block: 2360064,
    ff_per_block: 4722432,
    layernorm_per_block: 3072,
    params_per_block: 7085568,
    transformer_blocks_total: 85026816,
    final_layernorm: 1536,
    output_projection: 38597376,
    total_params: 163009536,
  });
});

test('a tied model counts the matrix of its embedding and head once', () => {
  expect(countParameters(PRESETS.gpt2).output_projection).toBe(0);
});

test('the total is that of the whole table, and the parts add up', () => {
  const count = fc.integer({ min: 1, max: 20 });
  fc.assert(
    fc.property(
      count,
      count,
      count,
      count,
      count,
      fc.boolean(),
      fc.boolean(),
      (V, C, heads, width, layers, bias, tied) => {
        const config = {
          vocab_size: V,
          context_length: C,
          emb_dim: heads * width,
          n_heads: heads,
          n_layers: layers,
          drop_rate: 0,
          qkv_bias: bias,
          tie_weights: tied,
        };
        const parts = countParameters(config);
        expect(parts.total_params).toBe(tensorTable(config).reduce((sum, { size }) => sum + size, 0));
        expect(parts.mha_per_block + parts.ff_per_block + parts.layernorm_per_block).toBe(parts.params_per_block);
        expect(
          parts.embedding_total + parts.transformer_blocks_total + parts.final_layernorm + parts.output_projection,
        ).toBe(parts.total_params);
      },
    ),
  );
});

test('matrices count when rows are multiplied with them, whether the model is tied or not', () => {
  const { block, head, total, largest } = countMatrices(PRESETS.gpt2);
  expect({ block, head, largest }).toEqual({ block: 12 * 768 * 768, head: 50257 * 768, largest: 50257 * 768 });
  expect(total).toBe(12 * block + head);
  expect(countMatrices({ ...PRESETS.gpt2, tie_weights: false, qkv_bias: false })).toEqual({
    block,
    head,
    total,
    largest,
  });
  expect(countMatrices({ ...PRESETS.gpt2, vocab_size: 100 }).largest).toBe(4 * 768 * 768);
});

test('bytes count for all tensors, and for the trained ones', () => {
  const config = PRESETS.gpt2;
  expect(countBytes(config)).toEqual({ all: 4 * 124439808, trained: 4 * 124439808 });
  const isTrained = (name: string): boolean => name === 'h.5.attn.c_attn.bias' || name.startsWith('ln_f.');
  expect(countBytes(config, { isTrained })).toEqual({ all: 4 * 124439808, trained: 4 * (3 * 768 + 2 * 768) });
  expect(
    tensorTable(config, { isTrained })
      .filter(({ trained }) => trained)
      .map(({ name }) => name),
  ).toEqual(['h.5.attn.c_attn.bias', 'ln_f.weight', 'ln_f.bias']);
});
