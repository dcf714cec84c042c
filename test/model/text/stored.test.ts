// Checks how tokenizers are read from the rows of the database.

import { describe, expect, test } from 'vitest';
import { completeTokenizer, readStoredTokenizer } from '../../../src/model/text/stored.ts';

const BPE = { type: 'bpe', tokens: ['a', null, 'b', 'ab'], merges: ['a b'], special: [1] };

test.each([
  null,
  { type: 'gpt2' },
  { type: 'byte' },
  { type: 'char', alphabet: 'ab' },
  { type: 'char', alphabet: null },
  BPE,
])('%j is read as it was stored', (stored) => {
  expect(readStoredTokenizer(stored)).toEqual(stored);
});

test('fields that are not there have defaults', () => {
  expect(readStoredTokenizer({ type: 'char' })).toEqual({ type: 'char', alphabet: null });
  expect(readStoredTokenizer({ type: 'bpe', tokens: ['a'], merges: [] })).toMatchObject({ special: [] });
});

describe('a stored tokenizer is corrupt when it is', () => {
  test.each([
    ['gpt2', 'it is no object'],
    [{}, 'its type is undefined'],
    [{ type: 'words' }, 'its type is "words"'],
    [{ type: 'char', alphabet: 7 }, 'its alphabet is no text'],
    [{ ...BPE, tokens: ['a', 1] }, 'its tokens are no list of texts'],
    [{ ...BPE, merges: 'a b' }, 'its merges are no list of texts'],
    [{ ...BPE, special: [0.5] }, 'its special tokens are no list of ids'],
  ])('%j', (stored, why) => {
    expect(() => readStoredTokenizer(stored)).toThrow(
      expect.objectContaining({ code: 'corrupt', message: `The tokenizer cannot be read: ${why}.` }) as Error,
    );
  });
});

test('a tokenizer is complete when it can read and write', () => {
  expect(completeTokenizer(null)).toBeNull();
  expect(completeTokenizer({ type: 'char', alphabet: null })).toBeNull();
  expect(completeTokenizer({ type: 'char', alphabet: 'ab' })).toEqual({ type: 'char', alphabet: 'ab' });
  expect(completeTokenizer({ type: 'gpt2' })).toEqual({ type: 'gpt2' });
});
