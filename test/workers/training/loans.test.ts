// Checks arrays that move between two stages under a name.

import { MessageChannel } from 'node:worker_threads';
import { afterEach, expect, test } from 'vitest';
import { Loans } from '../../../src/workers/training/loans.ts';
import { loanArrays, type GradientLoan } from '../../../src/workers/training/messages.ts';

const opened: Loans[] = [];
afterEach(() => {
  for (const loans of opened.splice(0)) loans.close();
});

function two(): [Loans, Loans] {
  const { port1, port2 } = new MessageChannel();
  const ends: [Loans, Loans] = [new Loans([null, port1]), new Loans([port2, null])];
  opened.push(...ends);
  return ends;
}

const loan = (...values: number[]): GradientLoan => ({
  accumulate: false,
  last: false,
  rows: [{ name: 'x', bytes: Float32Array.from(values) }],
  norms: [{ name: 'ln_1.weight', bytes: Float32Array.from(values) }],
  gradients: [{ name: 'attn.c_attn.weight', bytes: Float32Array.from(values), sumOfSquares: null }],
});

test('sent arrays are there at once, and have left the sender', () => {
  const [a, b] = two();
  const sent = loan(1, 2);
  a.send(1, 'x', sent);
  expect(loanArrays(sent).map(({ length }) => length)).toEqual([0, 0, 0]);
  expect(b.take(0, 'x')).toEqual(loan(1, 2));
  b.send(0, 'x', loan(3));
  expect(a.take(1, 'x')).toEqual(loan(3));
});

test('arrays that an abandoned step has left behind are skipped', () => {
  const [a, b] = two();
  a.send(1, 'old', loan(1));
  a.send(1, 'new', loan(2));
  expect(b.take(0, 'new')).toEqual(loan(2));
  expect(() => b.take(0, 'new')).toThrow('stage 0 has sent no new');
});
