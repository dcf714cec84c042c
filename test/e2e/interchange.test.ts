// Checks weights that are exported and imported: safetensors keep the digest, the ONNX file gives the same greedy tokens in plain
// ONNX Runtime, an exported file is whole or not there, and an import that fails leaves nothing behind.

import { mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import ort from 'onnxruntime-node';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import { EXIT } from '../../src/cli/exit-codes.ts';
import type { CreateResult, ModelRecord } from '../../src/daemon/protocol/models.ts';
import type { ExportResult } from '../../src/daemon/protocol/interchange.ts';
import { parseSafetensorsHeader } from '../../src/model/formats/safetensors.ts';
import { flagsOf, generateResult, startedHome, trainResult, type DataHome } from './daemon-fixture.ts';

const SHAPE = { context_length: 48, emb_dim: 32, n_heads: 2, n_layers: 2, drop_rate: 0, init: 'gpt2' };
const TEXT = Array.from({ length: 150 }, (_, i) => `Verse ${i} of ${(i * 37) % 89}: the sea, the wind.`).join('\n');
const MODELS = ['byte', 'char', 'gpt2'] as const;
const FLAGS: Readonly<Record<(typeof MODELS)[number], Record<string, string | number | boolean>>> = {
  byte: { vocab_size: 256, tokenizer: 'byte' },
  char: { vocab_size: 64, tokenizer: 'char', qkv_bias: true },
  gpt2: { vocab_size: 50257, tokenizer: 'gpt2', qkv_bias: true, tie_weights: true },
};

let home: DataHome;
const digests = new Map<string, string>();

beforeAll(async () => {
  home = await startedHome({ workers: 1 });
  const data = home.write('text.txt', TEXT);
  for (const name of MODELS) {
    await home.json(['create', name, ...flagsOf({ ...SHAPE, ...FLAGS[name] })]);
    const steps = flagsOf({ steps: 40, batch_size: 8, lr: 0.01, val_split: 0 });
    digests.set(name, trainResult(await home.events(['train', name, '--data', data, ...steps])).digest);
  }
});

afterAll(() => home.close());

const place = (name: string): string => path.join(home.dir, name);
const greedy = async (model: string, flags: readonly string[]): Promise<readonly number[]> =>
  generateResult(await home.events(['generate', model, ...flags, '--max-tokens', '30'])).ids;

describe.each(MODELS)('a %s model', (name) => {
  test('comes back from safetensors with its digest, its tokenizer and its tokens', async () => {
    const directory = place(`${name}-hf`);
    const written = await home.json<ExportResult>(['export', name, '--format', 'safetensors', directory]);
    expect(written).toMatchObject({ model: name, step: 40, digest: digests.get(name), type: 'f32' });
    expect(written.files.map((file) => file.name).slice(0, 2)).toEqual(['model.safetensors', 'config.json']);
    expect(readdirSync(directory).sort()).toEqual(written.files.map((file) => file.name).sort());

    const back = await home.json<CreateResult>(['import', `${name}-back`, directory]);
    expect(back.digest).toBe(digests.get(name));
    const record = await home.json<ModelRecord>(['models', 'show', name]);
    expect(await home.json(['models', 'show', `${name}-back`])).toMatchObject({
      config: record.config,
      tokenizer: record.tokenizer,
    });
    // The weights' header carries the configuration, so that the file can be imported alone.
    const alone = path.join(directory, 'model.safetensors');
    const bare = place(`${name}-bare`);
    mkdirSync(bare);
    writeFileSync(path.join(bare, 'model.safetensors'), readFileSync(alone));
    expect(await home.json(['import', `${name}-bare`, bare])).toMatchObject({ digest: digests.get(name) });
    const prompt = ['--prompt', 'Verse 1'];
    expect(await greedy(`${name}-back`, prompt)).toEqual(await greedy(name, prompt));
  });

  test('gives the same greedy tokens from its ONNX file, token by token over the cache', async () => {
    const directory = place(`${name}-onnx`);
    await home.json(['export', name, '--format', 'onnx', directory]);
    const { config } = await home.json<ModelRecord>(['models', 'show', name]);
    const prompt = [3, 1, 4, 1, 5];
    const expected = await greedy(name, ['--prompt-ids', prompt.join()]);
    const file = path.join(directory, 'onnx', 'model.onnx');
    expect(await onnxGreedy(file, { prompt, count: expected.length, config })).toEqual(expected);
  });
});

/** Resolves to the greedy tokens of a model with a cache, as any client of ONNX Runtime would compute them. */
async function onnxGreedy(
  file: string,
  {
    prompt,
    count,
    config: { n_layers, n_heads, emb_dim, vocab_size },
  }: { readonly prompt: readonly number[]; readonly count: number; readonly config: ModelRecord['config'] },
): Promise<number[]> {
  const session = await ort.InferenceSession.create(file, { intraOpNumThreads: 1, logSeverityLevel: 3 });
  const int64 = (values: readonly number[]): ort.Tensor =>
    new ort.Tensor('int64', BigInt64Array.from(values, BigInt), [1, values.length]);
  const names = Array.from({ length: n_layers }, (_, n) => [`${n}.key`, `${n}.value`]).flat();
  const empty = (): ort.Tensor => new ort.Tensor('float32', new Float32Array(), [1, n_heads, 0, emb_dim / n_heads]);
  let cache = new Map(names.map((name) => [name, empty()]));
  let ids = prompt;
  let past = 0;
  const out: number[] = [];
  while (out.length < count) {
    const outputs = await session.run({
      input_ids: int64(ids),
      attention_mask: int64(Array.from({ length: past + ids.length }, () => 1)),
      position_ids: int64(ids.map((_, i) => past + i)),
      ...Object.fromEntries([...cache].map(([name, tensor]) => [`past_key_values.${name}`, tensor])),
    });
    past += ids.length;
    cache = new Map(names.map((name) => [name, outputs[`present.${name}`]]));
    expect(outputs['logits'].dims).toEqual([1, ids.length, vocab_size]);
    const logits = (outputs['logits'].data as Float32Array).subarray(-vocab_size);
    ids = [logits.indexOf(Math.max(...logits))];
    out.push(...ids);
  }
  await session.release();
  return out;
}

test('safetensors in half precision are half as large and can be imported', async () => {
  const file = place('half.safetensors');
  await home.json(['export', 'byte', '--format', 'safetensors', '--type', 'f16', file]);
  const bytes = readFileSync(file);
  const { tensors } = parseSafetensorsHeader(bytes, { fileBytes: bytes.length });
  expect(new Set(tensors.map(({ dtype }) => dtype))).toEqual(new Set(['F16']));
  expect(tensors.every(({ name }) => /^(transformer\.|lm_head\.)/.test(name))).toBe(true);
  const back = await home.json<CreateResult>(['import', 'half', file]);
  expect(back.digest).not.toBe(digests.get('byte'));
});

test('an earlier checkpoint is exported under its own digest, and two exports have the same bytes', async () => {
  const runs = await Promise.all(
    ['a', 'b'].map((name) =>
      home.json<ExportResult>(['export', 'byte@40', '--format', 'gguf', '--type', 'q8_0', place(`${name}.gguf`)]),
    ),
  );
  expect(runs[0].files).toEqual(runs[1].files);
  expect(runs[0].files.map(({ name }) => name)).toEqual(['byte-q8_0.gguf']);
  expect(readFileSync(place('a.gguf')).subarray(0, 4).toString()).toBe('GGUF');
});

describe('an export is refused', () => {
  test.each<[string, () => string[], number, RegExp]>([
    ['of an unknown model', () => ['export', 'nobody', '--format', 'gguf', place('n')], EXIT.jobFailed, /nobody/],
    ['of an unknown step', () => ['export', 'byte@7', '--format', 'gguf', place('n')], EXIT.jobFailed, /7/],
    ['without a format', () => ['export', 'byte', place('n')], EXIT.usage, /--format/],
    [
      'in a type that the format does not have',
      () => ['export', 'byte', '--format', 'onnx', '--type', 'q8_0', place('n')],
      EXIT.usage,
      /--type is "q8_0": onnx is written as f32/,
    ],
    [
      'into a directory with something in it',
      () => ['export', 'byte', '--format', 'gguf', home.dir],
      EXIT.usage,
      /is not empty.*--force/,
    ],
    [
      'onto a file',
      () => ['export', 'byte', '--format', 'gguf', place('text.txt')],
      EXIT.usage,
      /is there already.*--force/,
    ],
  ])('%s', async (_what, args, exitCode, line) => {
    const run = await home.cli(args());
    expect(run).toMatchObject({ exitCode, stdout: '' });
    expect(run.stderr.trimEnd().split('\n').at(-1)).toMatch(line);
    expect(readdirSync(home.dir).filter((name) => name.includes('.part-') || name === 'n')).toEqual([]);
  });
});

describe('an import that fails', () => {
  const damaged = (name: string, change: (bytes: Buffer) => Uint8Array): string => {
    const directory = place(name);
    mkdirSync(directory);
    for (const file of readdirSync(place('byte-hf'))) {
      writeFileSync(path.join(directory, file), readFileSync(path.join(place('byte-hf'), file)));
    }
    const weights = path.join(directory, 'model.safetensors');
    writeFileSync(weights, change(readFileSync(weights)));
    return directory;
  };

  test.each<[string, (bytes: Buffer) => Uint8Array, RegExp]>([
    ['truncated', (bytes) => bytes.subarray(0, -3), /Tensor "[^"]+" lies at \d+ to \d+ of the data/],
    [
      'not-a-number',
      (bytes) => {
        bytes.writeFloatLE(NaN, bytes.length - 4);
        return bytes;
      },
      /Tensor lm_head\.weight holds NaN at value 8191: weights must be finite/,
    ],
    [
      'renamed',
      (bytes) =>
        Buffer.from(
          bytes.toString('latin1').replace('"transformer.h.1.ln_2.bias"', '"transformer.h.1.ln_9.bias"'),
          'latin1',
        ),
      /Tensor h\.1\.ln_2\.bias of shape \(32\) is missing/,
    ],
  ])('%s says why in one line and leaves no model', async (name, change, line) => {
    const run = await home.cli(['import', name, damaged(name, change)]);
    expect(run).toMatchObject({ exitCode: EXIT.jobFailed, stdout: '' });
    expect(run.stderr.trimEnd().split('\n').at(-1)).toMatch(line);
    const { models } = await home.json<{ models: ModelRecord[] }>(['models']);
    expect(models.map((model) => model.name)).not.toContain(name);
    // The name is free: the failed import has kept nothing.
    expect((await home.cli(['import', name, place('byte-hf')])).exitCode).toBe(EXIT.ok);
  });
});
