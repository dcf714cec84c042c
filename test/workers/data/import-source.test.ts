// Checks imports at the level of blobs: every form in which GPT-2 weights travel gives the same numbers, and weights that do not
// fit are refused by the name of their tensor.

import { createHash } from 'node:crypto';
import { onTestFinished, describe, expect, test } from 'vitest';
import type { GptConfig } from '../../../src/model/config.ts';
import { weightsDigest } from '../../../src/model/digest.ts';
import { toHalf } from '../../../src/model/formats/half.ts';
import { safetensorsHeader, toFloat32, type SafetensorsDtype } from '../../../src/model/formats/safetensors.ts';
import { tensorTable } from '../../../src/model/tensors.ts';
import { openReader } from '../../../src/workers/store/reader.ts';
import { openImport, type ImportSource } from '../../../src/workers/data/import-source.ts';
import { numbers, openedStore, TINY } from '../store/fixture.ts';

interface Written {
  readonly name: string;
  readonly shape: readonly number[];
  readonly dtype: SafetensorsDtype;
  readonly bytes: Uint8Array;
}

const bytesOf = ({ buffer, byteOffset, byteLength }: ArrayBufferView): Uint8Array =>
  new Uint8Array(buffer as ArrayBuffer, byteOffset, byteLength);

const f32 = (name: string, shape: readonly number[], data: Float32Array): Written => ({
  name,
  shape,
  dtype: 'F32',
  bytes: bytesOf(data),
});

const tensorsOf = (config: GptConfig): Written[] =>
  tensorTable(config).map(({ name, shape, size }) => f32(name, shape, numbers(size, { seed: 5, name })));

const fileOf = (tensors: readonly Written[], metadata: Readonly<Record<string, string>> = {}): Uint8Array =>
  Buffer.concat([safetensorsHeader(tensors, metadata), ...tensors.map(({ bytes }) => bytes)]);

const TIED: GptConfig = { ...TINY, tie_weights: true };
const hfConfig = (config: GptConfig): Record<string, unknown> => ({
  model_type: 'gpt2',
  architectures: ['GPT2LMHeadModel'],
  vocab_size: config.vocab_size,
  n_positions: config.context_length,
  n_embd: config.emb_dim,
  n_head: config.n_heads,
  n_layer: config.n_layers,
  resid_pdrop: config.drop_rate,
  tie_word_embeddings: config.tie_weights,
});

/** Uploads the files, opens them as an import, and reads the import to its end. */
async function imported(
  files: Readonly<Record<string, Uint8Array | object | string>>,
  headCount: number | null = null,
): Promise<ImportSource & { readonly digest: string }> {
  const { store, dataDir } = openedStore();
  const digests = Object.entries(files).map(([name, content]) => {
    const bytes =
      content instanceof Uint8Array
        ? content
        : new TextEncoder().encode(typeof content === 'string' ? content : JSON.stringify(content));
    const { uploadId } = store.beginBlob({});
    store.putBlobChunk({ uploadId, bytes });
    return [name, store.commitBlob({ uploadId }).hash];
  });
  const reader = openReader(dataDir);
  onTestFinished(() => reader.close());
  const source = await openImport(reader, { files: Object.fromEntries(digests) as Record<string, string>, headCount });
  const digest = weightsDigest(source.config);
  for (const { tensor, bytes } of source.chunks) digest.update(tensor, bytes);
  return { ...source, digest: digest.digest() };
}

function digestOf(tensors: readonly Written[]): string {
  const hash = createHash('sha256');
  for (const { name, shape, dtype, bytes } of tensors) {
    hash.update(`${name} ${shape.join(',')}\n`).update(bytesOf(toFloat32(bytes, dtype)));
  }
  return hash.digest('hex');
}

const withPrefix = (tensors: readonly Written[]): Written[] =>
  tensors.map((tensor) =>
    tensor.name.startsWith('lm_head') ? tensor : { ...tensor, name: `transformer.${tensor.name}` },
  );

const replaced = (tensors: readonly Written[], name: string, change: (tensor: Written) => Written | []): Written[] =>
  tensors.flatMap((tensor) => (tensor.name === name ? change(tensor) : [tensor]));

describe('the same numbers come out of', () => {
  const untied = tensorsOf(TINY);
  const tied = tensorsOf(TIED);
  const buffers: Written[] = [
    { name: 'h.0.attn.bias', shape: [1, 1, 8, 8], dtype: 'BOOL', bytes: new Uint8Array(64) },
    { name: 'transformer.h.1.attn.masked_bias', shape: [], dtype: 'F32', bytes: new Uint8Array(4) },
  ];
  const head = f32('lm_head.weight', [TINY.vocab_size, TINY.emb_dim], new Float32Array(tied[0].bytes.slice().buffer));

  test.each<[string, Written[], GptConfig, readonly Written[]]>([
    ['bare names', untied, TINY, untied],
    ['prefixed names', withPrefix(untied), TINY, untied],
    ['another order', [...untied].reverse(), TINY, untied],
    ['mask buffers of old exports', [...buffers, ...withPrefix(tied)], TIED, tied],
    ['a tied model that carries its head', [...tied, head], TIED, tied],
  ])('%s', async (_what, file, config, wanted) => {
    const found = await imported({ 'model.safetensors': fileOf(file), 'config.json': hfConfig(config) });
    expect(found.config).toEqual(config);
    expect(found.digest).toBe(digestOf(wanted));
  });

  test.each(['F16', 'BF16'] as const)('%s', async (dtype) => {
    const halves = untied.map((tensor): Written => {
      const values = new Float32Array(tensor.bytes.slice().buffer);
      const bits = new Uint32Array(values.buffer);
      const data = dtype === 'F16' ? toHalf(values) : Uint16Array.from(bits, (word) => word >>> 16);
      return { ...tensor, dtype, bytes: bytesOf(data) };
    });
    const found = await imported({ 'model.safetensors': fileOf(halves), 'config.json': hfConfig(TINY) });
    expect(found.digest).toBe(digestOf(halves));
    expect(found.digest).not.toBe(digestOf(untied));
  });

  test('shards', async () => {
    const names = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'];
    const weight_map = Object.fromEntries(untied.map(({ name }, i) => [name, names[i % 2]]));
    const shard = (which: number): Uint8Array => fileOf(untied.filter((_, i) => i % 2 === which));
    const files = {
      'model.safetensors.index.json': { metadata: { total_size: 1 }, weight_map },
      [names[0]]: shard(0),
      [names[1]]: shard(1),
      'config.json': hfConfig(TINY),
    };
    expect((await imported(files)).digest).toBe(digestOf(untied));
    await expect(imported({ ...files, [names[1]]: shard(0) })).rejects.toThrow(
      `Tensor wte.weight is in ${names[1]}, where model.safetensors.index.json does not place it.`,
    );
    const partial = fileOf(untied.filter((_, i) => i % 2 === 0).slice(1));
    await expect(imported({ ...files, [names[0]]: partial })).rejects.toThrow(`wte.weight is not in ${names[0]}`);
    const strange = { weight_map: { ...weight_map, 'wte.weight': 'model-00003-of-00002.safetensors' } };
    await expect(imported({ ...files, 'model.safetensors.index.json': strange })).rejects.toThrow(
      'not among the files',
    );
    await expect(imported({ ...files, 'model.safetensors.index.json': {} })).rejects.toThrow('no weight_map');
  });

  test('no configuration, with counts from the shapes and heads from the user', async () => {
    const found = await imported({ 'model.safetensors': fileOf(withPrefix(tied)) }, 2);
    expect(found.config).toEqual({ ...TIED, drop_rate: 0 });
    expect(found.digest).toBe(digestOf(tied));
    await expect(imported({ 'model.safetensors': fileOf(tied) })).rejects.toThrow('--n-heads');
  });

  test('an export of a model without a bias of q, k and v, which carries zeros for it', async () => {
    const bare = tensorsOf({ ...TINY, qkv_bias: false });
    const filled = tensorsOf(TINY).map((tensor) =>
      tensor.name.endsWith('c_attn.bias') ? { ...tensor, bytes: new Uint8Array(tensor.bytes.length) } : tensor,
    );
    const json = { ...hfConfig(TINY), gptd: { qkv_bias: false } };
    const found = await imported({ 'model.safetensors': fileOf(filled), 'config.json': json });
    expect(found.config.qkv_bias).toBe(false);
    expect(found.digest).toBe(digestOf(bare));
    // After training elsewhere the biases are not zero, so they are weights.
    const trained = await imported({ 'model.safetensors': fileOf(untied), 'config.json': json });
    expect(trained.config.qkv_bias).toBe(true);
    // This configuration does not say that the zeros stand for missing biases.
    const plain = await imported({ 'model.safetensors': fileOf(filled), 'config.json': hfConfig(TINY) });
    expect(plain.config.qkv_bias).toBe(true);
  });
});

describe('refused by name:', () => {
  const tensors = withPrefix(tensorsOf(TIED));
  const fc = 'transformer.h.1.mlp.c_fc.weight';
  const value = (at: number, number: number) => (tensor: Written) => {
    const data = new Float32Array(tensor.bytes.slice().buffer);
    data[at] = number;
    return { ...tensor, bytes: bytesOf(data) };
  };
  const config = hfConfig(TIED);

  test.each<[string, Written[], object, string, string]>([
    ['NaN', replaced(tensors, fc, value(7, NaN)), config, 'corrupt', 'Tensor h.1.mlp.c_fc.weight holds NaN at value 7'],
    [
      'infinity',
      replaced(tensors, fc, value(0, -Infinity)),
      config,
      'corrupt',
      'c_fc.weight holds -Infinity at value 0',
    ],
    [
      'a transposed tensor',
      replaced(tensors, fc, (tensor) => ({ ...tensor, shape: [32, 8] })),
      config,
      'incompatible',
      `Tensor ${fc} has shape (32, 8) but (8, 32) is wanted`,
    ],
    [
      'a missing tensor',
      replaced(tensors, fc, () => []),
      config,
      'incompatible',
      'Tensor h.1.mlp.c_fc.weight of shape (8, 32) is missing',
    ],
    [
      'a tensor too many',
      [...tensors, f32('score.weight', [2, 8], new Float32Array(16))],
      config,
      'incompatible',
      'Tensor score.weight of shape (2, 8) has no place',
    ],
    [
      'integers',
      replaced(tensors, fc, (tensor) => ({ ...tensor, dtype: 'I32' })),
      config,
      'incompatible',
      'Tensor transformer.h.1.mlp.c_fc.weight of shape (8, 32) has type I32: weights must be F32, F16 or BF16',
    ],
    [
      'doubles',
      replaced(tensors, fc, (tensor) => ({ ...tensor, dtype: 'F64', shape: [8, 16] })),
      { ...config },
      'incompatible',
      '(8, 16)',
    ],
    [
      'a tied head of integers',
      [...tensors, { ...f32('lm_head.weight', [40, 8], new Float32Array(320)), dtype: 'I32' }],
      config,
      'incompatible',
      'Tensor lm_head.weight of shape (40, 8) has type I32: weights must be F32, F16 or BF16',
    ],
    [
      'a head that is tied and differs',
      [...tensors, f32('lm_head.weight', [40, 8], new Float32Array(320))],
      config,
      'incompatible',
      'ties lm_head.weight (40, 8) to transformer.wte.weight (40, 8), but they differ',
    ],
    [
      'a configuration of more blocks',
      tensors,
      { ...config, n_layer: 3 },
      'incompatible',
      'Tensor h.2.ln_1.weight of shape (8) is missing',
    ],
    [
      'a configuration of fewer blocks',
      tensors,
      { ...config, n_layer: 1 },
      'incompatible',
      'h.1.ln_1.weight of shape (8)',
    ],
    [
      'a configuration of another vocabulary',
      tensors,
      { ...config, vocab_size: 50257 },
      'incompatible',
      'Tensor transformer.wte.weight has shape (40, 8) but (50257, 8) is wanted by the configuration',
    ],
    [
      'another architecture',
      tensors,
      { ...config, model_type: 'llama' },
      'incompatible',
      'the one supported architecture is "gpt2"',
    ],
  ])('%s', async (_what, file, json, code, words) => {
    await expect(imported({ 'model.safetensors': fileOf(file), 'config.json': json })).rejects.toMatchObject({
      code,
      message: expect.stringContaining(words) as string,
    });
  });

  test('files that end early, and files that are something else', async () => {
    const file = fileOf(tensors);
    for (const [bytes, words] of [
      [file.slice(0, -1), /of the data, which has/],
      [file.slice(0, 100), /The header ends at byte/],
      [file.slice(0, 5), /5 bytes/],
      [new TextEncoder().encode('GGUF and then some more'), /The header has \d+ bytes/],
    ] as const) {
      const read = imported({ 'model.safetensors': bytes, 'config.json': config });
      await expect(read).rejects.toMatchObject({ code: 'corrupt', message: expect.stringMatching(words) as string });
    }
    await expect(imported({ 'model.safetensors': file, 'config.json': '{' })).rejects.toThrow(
      'config.json is not JSON',
    );
  });
});

describe('the tokenizer', () => {
  const weights = {
    'model.safetensors': fileOf(tensorsOf({ ...TIED, vocab_size: 300 })),
    'config.json': hfConfig({ ...TIED, vocab_size: 300 }),
  };

  test('is what our own export says', async () => {
    const json = { ...weights['config.json'], gptd: { tokenizer: { type: 'char', alphabet: 'abc' } } };
    expect((await imported({ ...weights, 'config.json': json })).tokenizer).toEqual({ type: 'char', alphabet: 'abc' });
    const bad = { ...weights['config.json'], gptd: { tokenizer: { type: 'char', alphabet: 'ba' } } };
    await expect(imported({ ...weights, 'config.json': bad })).rejects.toThrow('alphabet');
  });

  test('is the vocabulary beside the weights when it can be used', async () => {
    const vocab = { a: 0, b: 1, ab: 2 };
    const found = await imported({ ...weights, 'vocab.json': vocab, 'merges.txt': 'a b\n' });
    expect(found.tokenizer).toEqual({ type: 'bpe', tokens: ['a', 'b', 'ab'], merges: ['a b'], special: [] });
    expect(found.notes).toEqual([]);
  });

  test('is token ids alone, and a note, when it cannot', async () => {
    const pieces = await imported({ ...weights, 'tokenizer.json': { model: { type: 'Unigram' } } });
    expect(pieces.tokenizer).toBeNull();
    expect(pieces.notes).toEqual([expect.stringMatching(/"Unigram".*--prompt-ids/)]);
    const large = Object.fromEntries(Array.from({ length: 301 }, (_, id) => ['a'.repeat(id + 1), id]));
    const wide = await imported({ ...weights, 'vocab.json': large, 'merges.txt': '#version: 0.2\n' });
    expect(wide.notes).toEqual([expect.stringContaining('301 ids, but the model has only 300')]);
  });

  test('that contradicts itself is refused', async () => {
    const files = { ...weights, 'vocab.json': { a: 0 }, 'merges.txt': 'a b\n' };
    await expect(imported(files)).rejects.toMatchObject({ code: 'corrupt' });
  });
});
