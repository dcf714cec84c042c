// Checks which tokenizer a model gets, and which tokenizer reads its data.

import { describe, expect, test } from 'vitest';
import {
  adoptedTokenizer,
  dataTokenizer,
  importedTokenizer,
  newTokenizer,
  tokenizerName,
} from '../../../src/model/text/choice.ts';
import { completeTokenizer } from '../../../src/model/text/stored.ts';
import type { TokenizerSpec } from '../../../src/model/text/tokenizer.ts';

const WAITING = { type: 'char', alphabet: null } as const;
const CHAR: TokenizerSpec = { type: 'char', alphabet: 'ab' };
const BPE: TokenizerSpec = { type: 'bpe', tokens: ['a', 'b', 'ab'], merges: ['a b'], special: [] };

test.each([
  [50257, 'gpt2'],
  [50304, 'gpt2'],
  [50256, 'byte'],
  [256, 'byte'],
  [255, 'char'],
])('a vocabulary of %i suggests %s', (vocabSize, name) => {
  expect(newTokenizer(vocabSize).type).toBe(name);
});

test('a named tokenizer needs a vocabulary with room for all of its ids', () => {
  expect(newTokenizer(50257, 'byte')).toEqual({ type: 'byte' });
  expect(newTokenizer(3, 'char')).toEqual(WAITING);
  expect(() => newTokenizer(50256, 'gpt2')).toThrow(
    'The gpt2 tokenizer has 50257 ids and vocab_size is 50256: take --vocab-size 50257 or another tokenizer.',
  );
  expect(() => newTokenizer(255, 'byte')).toThrow(expect.objectContaining({ code: 'invalid_spec' }) as Error);
});

describe('an import', () => {
  const unnamed = { vocabSize: 50257, named: undefined, found: null, isNoted: false };

  test('takes the named tokenizer, whatever the files say', () => {
    expect(importedTokenizer({ ...unnamed, named: 'byte', found: BPE })).toEqual({ type: 'byte' });
    expect(() => importedTokenizer({ ...unnamed, vocabSize: 61, named: 'byte' })).toThrow('take --vocab-size 256');
  });

  test("takes the files' tokenizer, or GPT-2's where they have none and the vocabulary has its size", () => {
    expect(importedTokenizer({ ...unnamed, found: BPE })).toBe(BPE);
    expect(importedTokenizer(unnamed)).toEqual({ type: 'gpt2' });
    expect(importedTokenizer({ ...unnamed, vocabSize: 50304 })).toBeNull();
    expect(importedTokenizer({ ...unnamed, isNoted: true })).toBeNull();
  });
});

test('a model whose alphabet is not known yet cannot encode, and takes the alphabet of its first text', () => {
  expect([WAITING, CHAR, BPE, null].map(completeTokenizer)).toEqual([null, CHAR, BPE, null]);
  expect([WAITING, CHAR, BPE, null].map(tokenizerName)).toEqual(['char', 'char', 'bpe', null]);
  expect(adoptedTokenizer(WAITING, CHAR)).toBe(CHAR);
  expect(adoptedTokenizer(null, CHAR)).toBe(CHAR);
  expect(adoptedTokenizer(WAITING, null)).toBeNull();
  expect(adoptedTokenizer(BPE, BPE)).toBeNull();
});

test("data are read with the model's tokenizer, the named one, or as ids", () => {
  const model = { name: 'm', tokenizer: CHAR };
  const bare = { name: 'm', tokenizer: null };
  expect(dataTokenizer(model, undefined)).toBe(CHAR);
  expect(dataTokenizer(model, 'char')).toBe(CHAR);
  expect(dataTokenizer(model, 'none')).toBeNull();
  expect(() => dataTokenizer(model, 'byte')).toThrow('m has the char tokenizer: its data cannot be read with byte.');
  expect(dataTokenizer(bare, undefined)).toBeNull();
  expect(dataTokenizer(bare, 'byte')).toEqual({ type: 'byte' });
  expect(dataTokenizer(bare, 'char')).toEqual(WAITING);
});
