// Checks vocabularies that come as files: GPT-2's is recognized, another one encodes as its merges say, and a tokenizer that gptd
// cannot imitate is refused.

import { expect, test } from 'vitest';
import { BYTE_CHARACTERS } from '../../../src/model/text/bpe.ts';
import { gpt2Vocabulary, isSameBpe, readBpe } from '../../../src/model/text/bpe-files.ts';
import { createTokenizer } from '../../../src/model/text/create-tokenizer.ts';

const gpt2 = await gpt2Vocabulary();

/** Merges whose order is not the order of the ids that they make. */
const MERGES = ['b c', 'a b', 'a bc', 'Ġ a', 'Ġa b', 'Ã ©'];
const VOCAB: Readonly<Record<string, number>> = Object.fromEntries(
  [...BYTE_CHARACTERS, 'bc', 'ab', 'abc', 'Ġa', 'Ġab', 'Ã©', '<|endoftext|>'].map((token, id) => [token, id]),
);
const TOKENIZER = {
  added_tokens: [{ id: 262, content: '<|endoftext|>', special: true }],
  normalizer: null,
  pre_tokenizer: { type: 'ByteLevel', add_prefix_space: false },
  model: { type: 'BPE', vocab: VOCAB, merges: MERGES },
};

test("GPT-2's merges follow from its ranks", () => {
  expect(gpt2.merges).toHaveLength(50_000);
  // These are the first lines of its merges.txt and the last line.
  expect(gpt2.merges.slice(0, 6)).toEqual(['Ġ t', 'Ġ a', 'h e', 'i n', 'r e', 'o n']);
  expect(gpt2.merges.at(-1)).toBe('Ġg azed');
  expect(gpt2.tokens[50256]).toBe('<|endoftext|>');
});

test('the tokenizer made of GPT-2 vocabulary files encodes as GPT-2 does', async () => {
  const vocabJson: unknown = Object.fromEntries(gpt2.tokens.map((token, id) => [token, id]));
  const read = readBpe({ vocabJson, mergesText: `#version: 0.2\n${gpt2.merges.join('\n')}\n` });
  expect(isSameBpe(read, gpt2)).toBe(true);
  const [ours, theirs] = await Promise.all([
    createTokenizer({ type: 'bpe', ...read }),
    createTokenizer({ type: 'gpt2' }),
  ]);
  const text = "It's 2024:  they'll  go\n\n now. naïve café 日本語 👩‍👩‍👧 antidisestablishmentarianism <|endoftext|>";
  expect([...ours.encode(text)]).toEqual([...theirs.encode(text)]);
  expect(ours.decode(ours.encode(text))).toBe(text);
  expect([ours.vocabSize, ours.endOfText]).toEqual([50257, 50256]);
});

test('another vocabulary merges in the order of its merges, not of its ids', async () => {
  const spec = readBpe({ tokenizerJson: TOKENIZER });
  expect(isSameBpe(spec, gpt2)).toBe(false);
  expect(readBpe({ vocabJson: VOCAB, mergesText: MERGES.join('\r\n') })).toEqual(spec);
  expect(
    readBpe({ tokenizerJson: { ...TOKENIZER, model: { vocab: VOCAB, merges: MERGES.map((m) => m.split(' ')) } } }),
  ).toEqual(spec);
  const tokenizer = await createTokenizer({ type: 'bpe', ...spec });
  expect([...tokenizer.encode('abc')]).toEqual([VOCAB['abc']]);
  // `a b` comes before `Ġ a`, so the merge `Ġa b` never happens.
  expect([...tokenizer.encode(' ab')]).toEqual([VOCAB['Ġ'], VOCAB['ab']]);
  expect([...tokenizer.encode(' ax')]).toEqual([VOCAB['Ġa'], VOCAB['x']]);
  expect([...tokenizer.encode('é')]).toEqual([VOCAB['Ã©']]);
  expect(tokenizer.decode([...tokenizer.encode('été <|endoftext|>'), 262])).toBe('été <|endoftext|><|endoftext|>');
  expect([tokenizer.vocabSize, tokenizer.endOfText]).toEqual([263, 262]);
});

test('a byte without a token cannot be encoded', async () => {
  const tokenizer = await createTokenizer({ type: 'bpe', ...readBpe({ vocabJson: { a: 0 }, mergesText: '' }) });
  expect([...tokenizer.encode('aa')]).toEqual([0, 0]);
  expect(() => tokenizer.encode('ab')).toThrow('no token for "b"');
});

test.each<[string, Parameters<typeof readBpe>[0], string, string]>([
  ['only one of two files', { vocabJson: VOCAB }, 'incompatible', 'both vocab.json and merges.txt'],
  ['a WordPiece', { tokenizerJson: { model: { type: 'WordPiece' } } }, 'incompatible', 'a "WordPiece"'],
  ['a normalizer', { tokenizerJson: { ...TOKENIZER, normalizer: { type: 'NFC' } } }, 'incompatible', 'normalizes'],
  [
    'another split',
    { tokenizerJson: { ...TOKENIZER, pre_tokenizer: { type: 'Metaspace' } } },
    'incompatible',
    "GPT-2's way",
  ],
  [
    'a suffix of words',
    { tokenizerJson: { ...TOKENIZER, model: { ...TOKENIZER.model, end_of_word_suffix: '</w>' } } },
    'incompatible',
    'end_of_word_suffix',
  ],
  ['tokens that are no bytes', { vocabJson: { '▁a': 0 }, mergesText: '' }, 'incompatible', '"▁a"'],
  ['no object', { vocabJson: [], mergesText: '' }, 'corrupt', 'vocab.json is not an object'],
  ['an empty vocabulary', { vocabJson: {}, mergesText: '' }, 'corrupt', '0 tokens'],
  ['an id of text', { vocabJson: { a: '0' }, mergesText: '' }, 'corrupt', 'gives "a" the id "0"'],
  ['a wild id', { vocabJson: { a: 2 ** 40 }, mergesText: '' }, 'corrupt', '1099511627776'],
  ['an id for two', { vocabJson: { a: 0, b: 0 }, mergesText: '' }, 'corrupt', 'the same id 0'],
  ['a merge of nothing', { vocabJson: VOCAB, mergesText: 'x y' }, 'corrupt', '"x y"'],
  ['a merge of three', { vocabJson: VOCAB, mergesText: 'a b c' }, 'corrupt', '"a b c"'],
])('%s is refused', (_what, files, code, words) => {
  expect(() => readBpe(files)).toThrow(
    expect.objectContaining({ code, message: expect.stringContaining(words) as string }) as Error,
  );
});
