// Checks the digest of weights: its definition, written out with nothing but SHA-256, and its refusal of anything out of order.

import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import type { GptConfig } from '../../src/model/config.ts';
import { weightsDigest, type WeightsDigest } from '../../src/model/digest.ts';
import { tensorTable } from '../../src/model/tensors.ts';

const config: GptConfig = {
  vocab_size: 5,
  context_length: 3,
  emb_dim: 2,
  n_heads: 1,
  n_layers: 2,
  drop_rate: 0,
  qkv_bias: true,
  tie_weights: false,
};
const table = tensorTable(config);
const bytesOf = (index: number): Uint8Array =>
  new Uint8Array(Float32Array.from({ length: table[index].size }, (_, i) => index + i / 7).buffer);

function fed(...indices: number[]): WeightsDigest {
  const digest = weightsDigest(config);
  for (const index of indices) digest.update(table[index].name, bytesOf(index));
  return digest;
}

test('it is SHA-256 over a line of name and shape, then the bytes, per tensor', () => {
  const hash = createHash('sha256');
  table.forEach(({ name, shape }, index) => {
    hash.update(Buffer.from(`${name} ${shape.length === 2 ? `${shape[0]},${shape[1]}` : `${shape[0]}`}\n`, 'utf8'));
    hash.update(bytesOf(index));
  });
  expect(fed(...table.keys()).digest()).toBe(hash.digest('hex'));
});

test('a tensor may come in pieces', () => {
  const pieces = weightsDigest(config);
  table.forEach(({ name }, index) => {
    const bytes = bytesOf(index);
    pieces.update(name, bytes.subarray(0, 5));
    pieces.update(name, bytes.subarray(5));
  });
  expect(pieces.digest()).toBe(fed(...table.keys()).digest());
});

test('order, length and completeness are checked', () => {
  expect(() => fed(1)).toThrow('wpe.weight comes where wte.weight was due');
  expect(() => fed(0, 0)).toThrow('wte.weight comes where wpe.weight was due');
  expect(() => fed(0).digest()).toThrow('not 1');
  expect(() => fed(...table.keys(), 0)).toThrow('after the last tensor');
  const partial = weightsDigest(config);
  partial.update('wte.weight', bytesOf(0).subarray(4));
  expect(() => partial.digest()).toThrow('the digest is complete');
  expect(() => partial.update('wpe.weight', bytesOf(1))).toThrow('while wte.weight lacks 4 bytes');
  expect(() => partial.update('wte.weight', bytesOf(0))).toThrow('too many');
});
