// Checks what `gptd inspect` says about files: our own files are read back, and damaged ones are refused without a crash.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import fc from 'fast-check';
import { afterAll, expect, test } from 'vitest';
import { inspectPath } from '../../src/offline/inspect.ts';
import { exportTokens } from '../../src/offline/token-export.ts';
import type { GptConfig } from '../../src/model/config.ts';
import { countParameters } from '../../src/model/count.ts';
import { GptdError } from '../../src/model/errors.ts';
import { aligned, ggufHeader, ggufTensorBytes, toQ4, toQ8 } from '../../src/model/formats/gguf.ts';
import { ggufMetadata, ggufTensors } from '../../src/model/formats/gguf-export.ts';
import { encodeOnnxInPieces } from '../../src/model/programs/onnx.ts';
import { cachedModelGraph } from '../../src/model/formats/onnx-export.ts';
import { safetensorsHeader } from '../../src/model/formats/safetensors.ts';
import { tensorTable } from '../../src/model/tensors.ts';
import { llmcHeader } from '../../src/model/formats/token-files.ts';
import { createTokenizer } from '../../src/model/text/create-tokenizer.ts';
import { readGgufHeader, readOnnxHeader, type WeightsHeader } from '../../src/model/formats/weights-header.ts';

const folder = mkdtempSync(path.join(tmpdir(), 'gptd-inspect-'));
afterAll(() => rmSync(folder, { recursive: true, force: true }));

const CONFIG: GptConfig = {
  vocab_size: 300,
  context_length: 8,
  emb_dim: 32,
  n_heads: 2,
  n_layers: 2,
  drop_rate: 0,
  qkv_bias: true,
  tie_weights: false,
};
const MODEL = { config: CONFIG, tokenizer: { type: 'gpt2' }, step: 7, digest: 'd' } as const;
const PARAMETERS = countParameters(CONFIG).total_params;

function write(name: string, content: Uint8Array | string): string {
  const file = path.join(folder, name);
  writeFileSync(file, content);
  return file;
}

async function gguf(): Promise<Uint8Array> {
  const tensors = ggufTensors(MODEL, 'q8_0');
  const bytes = tensors.reduce((sum, tensor) => sum + aligned(ggufTensorBytes(tensor)), 0);
  return Buffer.concat([
    ggufHeader(await ggufMetadata(MODEL, { name: 'm', type: 'q8_0' }), tensors),
    Buffer.alloc(bytes),
  ]);
}

function onnx(): Uint8Array {
  const sizes = new Map(tensorTable(CONFIG).map(({ name, size }) => [name, size]));
  const { pieces, sizeBytes } = encodeOnnxInPieces(cachedModelGraph(CONFIG), {
    weights: new Set(sizes.keys()),
    piecesOf: (name) => [new Uint8Array(4 * sizes.get(name)!)],
  });
  const bytes = Buffer.concat([...pieces]);
  expect(bytes.length).toBe(sizeBytes);
  return bytes;
}

test('a GGUF file shows its metadata and its tensors, outermost dimension first', async () => {
  const { files, architecture } = await inspectPath(write('m.gguf', await gguf()));
  expect(architecture).toBe('gpt2');
  const [{ format, parameters, tensors, metadata }] = files;
  expect({ format, parameters }).toEqual({ format: 'gguf', parameters: PARAMETERS });
  expect(tensors[0]).toEqual({ name: 'token_embd.weight', dtype: 'Q8_0', shape: [300, 32] });
  expect(tensors).toContainEqual({ name: 'blk.1.ffn_up.weight', dtype: 'Q8_0', shape: [128, 32] });
  expect(tensors).toContainEqual({ name: 'position_embd.weight', dtype: 'F32', shape: [8, 32] });
  expect(metadata).toMatchObject({
    'gpt2.block_count': 2,
    'gpt2.attention.layer_norm_epsilon': Math.fround(1e-5),
    'tokenizer.ggml.add_bos_token': false,
    'tokenizer.ggml.merges': { count: 50000, first: expect.arrayContaining(['Ġ t']) as string[] },
    'tokenizer.ggml.tokens': { count: 300 },
  });
});

test('an ONNX file shows its inputs, outputs and weights', async () => {
  const { files, architecture } = await inspectPath(write('m.onnx', onnx()));
  expect(architecture).toBe('a causal language model with a cache');
  expect(files[0].tensors).toContainEqual({ name: 'h.1.mlp.c_fc.weight', dtype: 'F32', shape: [32, 128] });
  expect(files[0].metadata).toMatchObject({
    producer: 'gptd',
    inputs: expect.arrayContaining(['input_ids', 'past_key_values.1.value']) as string[],
    outputs: expect.arrayContaining(['logits', 'present.1.value']) as string[],
  });
});

test('a safetensors file shows what an import would make of it', async () => {
  const table = tensorTable(CONFIG).map(({ name, shape }) => ({ name, shape, dtype: 'F32' as const }));
  const bytes = Buffer.concat([safetensorsHeader(table, {}), Buffer.alloc(4 * PARAMETERS)]);
  const { files, architecture } = await inspectPath(write('m.safetensors', bytes));
  expect(files[0]).toMatchObject({ format: 'safetensors', parameters: PARAMETERS });
  expect(architecture).toBe('gpt2: vocab 300, context 8, width 32, 2 blocks');
  const other = Buffer.concat([safetensorsHeader([{ name: 'x', dtype: 'I8', shape: [1] }], {}), Buffer.alloc(1)]);
  expect((await inspectPath(write('other.safetensors', other))).architecture).toMatch(/^unknown: Tensor wte\.weight/);
  expect((await inspectPath(folder)).files.map((file) => path.basename(file.path))).toEqual([
    'm.gguf',
    'm.onnx',
    'm.safetensors',
    'other.safetensors',
  ]);
});

test('text becomes the ids that training would see, with and without the header of llm.c', async () => {
  const text = write('a.txt', 'Hello, I am');
  const lines = write('b.jsonl', '{"text": "one"}\n\n{"text": "two"}\n');
  const out = path.join(folder, 'x.bin');
  const gpt2 = await createTokenizer({ type: 'gpt2' });
  const wanted = [...gpt2.encode('Hello, I am'), 50256, ...gpt2.encode('one'), 50256, ...gpt2.encode('two')];
  expect(await exportTokens({ files: [text, lines], tokenizer: 'gpt2', out, llmc: false })).toEqual({ tokens: 8 });
  const plain = readFileSync(out);
  expect([...new Uint16Array(new Uint8Array(plain).buffer)]).toEqual(wanted);
  expect((await inspectPath(out)).files[0]).toMatchObject({ format: 'tokens', metadata: { tokens: 8 } });

  await exportTokens({ files: [text, lines], tokenizer: 'gpt2', out, llmc: true });
  const headed = readFileSync(out);
  expect([0, 4, 8, 12].map((at) => headed.readUInt32LE(at))).toEqual([20240520, 1, 8, 0]);
  expect(headed.subarray(1024).equals(plain)).toBe(true);
  expect((await inspectPath(out)).files[0]).toMatchObject({
    format: 'llm.c tokens',
    metadata: { tokens: 8 },
  });

  const bytes = { files: [text, lines], tokenizer: 'byte' as const, out, llmc: false };
  await exportTokens(bytes);
  expect(
    readFileSync(out)
      .filter((_, i) => i % 2 === 0)
      .toString(),
  ).toBe('Hello, I am\none\ntwo');
  const broken = write('broken.jsonl', '{"text": 1}');
  await expect(exportTokens({ ...bytes, files: [broken] })).rejects.toThrow('Line 1');
  const latin1 = write('latin1.txt', Uint8Array.of(0xe9));
  await expect(exportTokens({ ...bytes, files: [latin1] })).rejects.toThrow('UTF-8');
});

test('a file that is missing, unknown or cut off is refused', async () => {
  await expect(inspectPath(path.join(folder, 'none'))).rejects.toThrow('There is no file');
  await expect(inspectPath(write('a.pt', 'PK and the rest'))).rejects.toMatchObject({ code: 'incompatible' });
  const pickled = inspectPath(write('pytorch_model.bin', 'PK and the rest'));
  await expect(pickled).rejects.toMatchObject({ code: 'incompatible' });
  await expect(inspectPath(write('odd.bin', new Uint8Array(3)))).rejects.toMatchObject({
    code: 'corrupt',
    message: expect.stringMatching(/odd\.bin: .*uint16 ids need an even number/) as string,
  });
  const short = Buffer.concat([llmcHeader(5), new Uint8Array(8)]);
  await expect(inspectPath(write('short.bin', short))).rejects.toThrow('promises 5 tokens and 4 follow it');
  await expect(inspectPath(write('cut.gguf', (await gguf()).subarray(0, 1000)))).rejects.toThrow(
    'The file ends at byte',
  );
  await expect(inspectPath(write('cut.onnx', onnx().subarray(0, 1000)))).rejects.toThrow('leaves its message');
});

test.each<[string, Uint8Array, (read: (offset: number, length: number) => Uint8Array, size: number) => WeightsHeader]>([
  ['GGUF', (await gguf()).subarray(0, 4000), readGgufHeader],
  ['ONNX', onnx().subarray(0, 6000), readOnnxHeader],
])('%s headers of an adversary are read or refused, nothing else', (_what, file, parse) => {
  const change = fc.tuple(fc.nat({ max: file.length - 1 }), fc.nat({ max: 255 }));
  fc.assert(
    fc.property(fc.array(change, { maxLength: 12 }), fc.nat({ max: file.length }), (changes, length) => {
      const bytes = new Uint8Array(file);
      for (const [at, value] of changes) bytes[at] = value;
      try {
        parse((offset, count) => bytes.slice(offset, offset + count), length);
      } catch (error) {
        expect(error).toBeInstanceOf(GptdError);
      }
    }),
    { numRuns: 300 },
  );
});

test('blocks of 32 keep the largest value and round the others to 127 steps', () => {
  const values = Float32Array.from({ length: 64 }, (_, i) => (i < 32 ? (i - 16) / 4 : 0));
  const bytes = toQ8(values);
  expect(bytes).toHaveLength(68);
  const view = new DataView(bytes.buffer);
  expect([view.getInt8(2), view.getInt8(2 + 16), view.getInt8(2 + 31)]).toEqual([-127, 0, 119]);
  expect([...bytes.subarray(34)]).toEqual(new Array(34).fill(0));
});

test('in 4 bits the value farthest from zero is -8 scales, and the others are within half a scale or at the end', () => {
  const values = Float32Array.from({ length: 64 }, (_, i) => (i < 32 ? (i - 10) / 4 : 0));
  const bytes = toQ4(values);
  expect(bytes).toHaveLength(36);
  // The scale is 5.25 / -8 = -0.65625, which is 0xb940 in half precision.
  expect(new DataView(bytes.buffer).getUint16(0, true)).toBe(0xb940);
  const codes = Array.from({ length: 32 }, (_, i) => (bytes[2 + (i % 16)] >> (i < 16 ? 0 : 4)) & 15);
  expect([codes[31], codes[10], codes[0]]).toEqual([0, 8, 12]);
  for (const [i, code] of codes.entries()) expect(Math.abs((code - 8) * -0.65625 - values[i])).toBeLessThan(0.34);
  expect([...bytes.subarray(18)]).toEqual([0, 0, ...new Array<number>(16).fill(0x88)]);
});
