// Checks the hash chain over a run's steps against the bytes that its definition names.

import { createHash } from 'node:crypto';
import { expect, test } from 'vitest';
import { CHAIN_START, nextLink } from '../../src/model/chain.ts';

test('a link is SHA-256 over the link before, the step, the loss and the gradient norm, little-endian', () => {
  const bytes = Buffer.alloc(32 + 24);
  bytes.writeBigUInt64LE(1n, 32);
  bytes.writeDoubleLE(2.5, 40);
  bytes.writeDoubleLE(0.1, 48);
  const link = nextLink(CHAIN_START, { step: 1, loss: 2.5, gradNorm: 0.1 });
  expect(link).toBe(createHash('sha256').update(bytes).digest('hex'));
  expect(link).toBe('d849b3173cf38e26f0c02539bdacb61855a8c5123ac0beac5efca227b5836114');
});

test('one bit of a loss or of a norm, the step, or the link before makes another link', () => {
  const step = { step: 7, loss: 2.5, gradNorm: 0.25 };
  const links = [
    nextLink(CHAIN_START, step),
    nextLink(CHAIN_START, { ...step, step: 8 }),
    nextLink(CHAIN_START, { ...step, loss: 2.5000000000000004 }),
    nextLink(CHAIN_START, { ...step, gradNorm: 0.25000000000000006 }),
    nextLink('1'.repeat(64), step),
  ];
  expect(new Set(links).size).toBe(links.length);
});
