// Checks imports of GPT-2 checkpoints: where the configuration comes from, which tensors are taken, and what the error says when
// they do not fit.

import { expect, test } from 'vitest';
import { PRESETS, type GptConfig } from '../../../src/model/config.ts';
import { configFromHuggingFace, type NamedShape } from '../../../src/model/formats/hf-config.ts';
import { tensorTable } from '../../../src/model/tensors.ts';

const openai: GptConfig = {
  vocab_size: 11,
  context_length: 5,
  emb_dim: 4,
  n_heads: 2,
  n_layers: 2,
  drop_rate: 0.1,
  qkv_bias: true,
  tie_weights: true,
};
/** The fields of openai-community/gpt2's config.json that matter, and some that do not. */
const huggingFace = {
  activation_function: 'gelu_new',
  architectures: ['GPT2LMHeadModel'],
  attn_pdrop: 0.1,
  layer_norm_epsilon: 1e-5,
  model_type: 'gpt2',
  n_ctx: 5,
  n_embd: 4,
  n_head: 2,
  n_layer: 2,
  n_positions: 5,
  resid_pdrop: 0.1,
  vocab_size: 11,
};
const ours = { vocab_size: 11, context_length: 5, emb_dim: 4, n_heads: 2, n_layers: 2, drop_rate: 0.2 };
const head: NamedShape = { name: 'lm_head.weight', shape: [11, 4] };
const tensors: NamedShape[] = tensorTable(openai).map(({ name, shape }) => ({ name, shape }));
const withoutQkvBias = tensors.filter(({ name }) => !name.endsWith('c_attn.bias'));

const incompatible = (words: string): Error =>
  expect.objectContaining({ code: 'incompatible', message: expect.stringContaining(words) as string }) as Error;

test("OpenAI's GPT-2, which has a prefix and mask buffers, is the preset gpt2", () => {
  const config = {
    ...huggingFace,
    n_ctx: 1024,
    n_positions: 1024,
    n_embd: 768,
    n_head: 12,
    n_layer: 12,
    vocab_size: 50257,
  };
  const file = tensorTable(PRESETS.gpt2).map(({ name, shape }) => ({ name: `transformer.${name}`, shape }));
  file.push(
    { name: 'transformer.h.0.attn.bias', shape: [1, 1, 1024, 1024] },
    { name: 'h.0.attn.masked_bias', shape: [] },
  );
  const read = configFromHuggingFace({ json: config, tensors: file });
  expect(read.config).toEqual(PRESETS.gpt2);
  expect(read.rename.size).toBe(tensorTable(PRESETS.gpt2).length);
  expect(read.rename.get('h.3.mlp.c_fc.bias')).toBe('transformer.h.3.mlp.c_fc.bias');
});

test('our own names are read, and qkv_bias follows from the tensors', () => {
  const { config } = configFromHuggingFace({ json: { ...ours, qkv_bias: true }, tensors: [...withoutQkvBias, head] });
  expect(config).toEqual({ ...ours, qkv_bias: false, tie_weights: false });
});

test('rename maps every tensor of the table, in the order of the table', () => {
  const { config, rename } = configFromHuggingFace({ json: ours, tensors: [...tensors, head].reverse() });
  expect([...rename.keys()]).toEqual(tensorTable(config).map(({ name }) => name));
});

test.each([
  ['Hugging Face, silent, no head', huggingFace, tensors, true],
  ['Hugging Face, silent, a head', huggingFace, [...tensors, head], true],
  ['Hugging Face, untied, a head', { ...huggingFace, tie_word_embeddings: false }, [...tensors, head], false],
  ['ours, untied, a head', { ...ours, tie_weights: false }, [...tensors, head], false],
  ['ours, tied, a head', { ...ours, tied: true }, [...tensors, head], true],
  ['ours, silent, a head', ours, [...tensors, head], false],
])('%s: tied is decided', (_what, json, file, tied) => {
  const { config, rename } = configFromHuggingFace({ json, tensors: file });
  expect(config.tie_weights).toBe(tied);
  expect(rename.has('lm_head.weight')).toBe(!tied);
});

test('a drop rate that is not named is 0', () => {
  const silent = { ...huggingFace, resid_pdrop: undefined };
  expect(configFromHuggingFace({ json: silent, tensors }).config.drop_rate).toBe(0);
  expect(configFromHuggingFace({ json: huggingFace, tensors }).config.drop_rate).toBe(0.1);
});

test.each<[string, unknown, NamedShape[], string]>([
  ['no object', [], tensors, 'config.json is not an object'],
  ['another architecture', { ...huggingFace, model_type: 'llama' }, tensors, '"llama"'],
  [
    'another class',
    { ...huggingFace, architectures: ['GPT2ForSequenceClassification'] },
    tensors,
    'GPT2LMHeadModel and GPT2Model',
  ],
  [
    'untied without a head',
    { ...huggingFace, tie_word_embeddings: false },
    tensors,
    'Tensor lm_head.weight of shape (11, 4) is missing',
  ],
  [
    'a vocabulary that the embedding does not have',
    { ...huggingFace, vocab_size: 12 },
    tensors,
    'Tensor wte.weight has shape (11, 4) but (12, 4) is wanted by the configuration',
  ],
  ['no configuration and no heads', null, tensors, 'give it with --n-heads'],
  ['no configuration and no GPT-2', null, [head], 'Tensor wte.weight is missing'],
  ['no configuration and a flat embedding', null, [{ name: 'wte.weight', shape: [44] }], '(44) but two dimensions'],
  ['another activation', { ...huggingFace, activation_function: 'relu' }, tensors, '"relu"'],
  ['another epsilon', { ...huggingFace, layer_norm_epsilon: 1e-6 }, tensors, '0.000001'],
  ['another width inside', { ...huggingFace, n_inner: 12 }, tensors, 'n_inner is 12: it must be 4 times the width, 16'],
  ['other scaling', { ...huggingFace, scale_attn_by_inverse_layer_idx: true }, tensors, '1/sqrt(head width)'],
  ['a missing field', { ...huggingFace, n_head: undefined }, tensors, 'no n_heads or n_head'],
  ['a field of text', { ...huggingFace, n_head: '2' }, tensors, 'The n_head of config.json is "2"'],
  ['an impossible field', { ...huggingFace, n_head: 3 }, tensors, 'cannot be divided among 3 heads'],
  ['a missing tensor', huggingFace, tensors.slice(1), 'Tensor wte.weight of shape (11, 4) is missing'],
  [
    'a transposed tensor',
    huggingFace,
    tensors.map((tensor) => (tensor.name === 'h.1.mlp.c_fc.weight' ? { ...tensor, shape: [16, 4] } : tensor)),
    'Tensor h.1.mlp.c_fc.weight has shape (16, 4) but (4, 16) is wanted',
  ],
  [
    'a tensor too many',
    huggingFace,
    [...tensors, { name: 'h.2.ln_1.weight', shape: [4] }],
    'h.2.ln_1.weight of shape (4)',
  ],
  [
    'the same tensor twice',
    huggingFace,
    [...tensors, { name: 'transformer.wte.weight', shape: [11, 4] }],
    'are both wte.weight',
  ],
])('%s is refused', (_what, json, file, words) => {
  expect(() => configFromHuggingFace({ json, tensors: file })).toThrow(incompatible(words));
});

test('without a configuration the counts come from the shapes, and the user gives the heads', () => {
  const { config } = configFromHuggingFace({ json: null, tensors: [...tensors, head], headCount: 4 });
  expect(config).toEqual({ ...openai, n_heads: 4, drop_rate: 0, tie_weights: false });
  expect(configFromHuggingFace({ json: null, tensors: withoutQkvBias, headCount: 1 }).config).toMatchObject({
    qkv_bias: false,
    tie_weights: true,
  });
});

test('the heads of weights with exactly the counts of a GPT-2 are known', () => {
  const file = tensorTable(PRESETS['gpt2-medium']).map(({ name, shape }) => ({ name, shape }));
  expect(configFromHuggingFace({ json: null, tensors: file }).config).toEqual({
    ...PRESETS['gpt2-medium'],
    drop_rate: 0,
  });
});

test('heads that are given twice must agree', () => {
  expect(configFromHuggingFace({ json: huggingFace, tensors, headCount: 2 }).config.n_heads).toBe(2);
  expect(() => configFromHuggingFace({ json: huggingFace, tensors, headCount: 1 })).toThrow(incompatible('2 heads'));
});
