// Checks the tokenizers. The ids of GPT-2 texts come from tiktoken 0.14 with the r50k_base vocabulary.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { charAlphabet, createTokenizer } from '../../../src/model/text/create-tokenizer.ts';
import { tableDecoding, tokenTable } from '../../../src/model/text/byte-decoding.ts';
import type { Tokenizer, TokenizerSpec } from '../../../src/model/text/tokenizer.ts';

const gpt2 = await createTokenizer({ type: 'gpt2' });
const byte = await createTokenizer({ type: 'byte' });
const text = 'héllo wörld 日本 👩‍👩‍👧';
const char = await createTokenizer({ type: 'char', alphabet: charAlphabet(text) });
const all: [string, Tokenizer][] = [
  ['gpt2', gpt2],
  ['byte', byte],
  ['char', char],
];

test.each([
  ['Hello, I am', [15496, 11, 314, 716]],
  ["It's 2024:  they'll  go\n\n now.", [1026, 338, 48609, 25, 220, 484, 1183, 220, 467, 628, 783, 13]],
  ['<|endoftext|>', [27, 91, 437, 1659, 5239, 91, 29]],
  ['日本語 👩‍👩‍👧', [33768, 98, 17312, 105, 45739, 252, 50169, 102, 447, 235, 41840, 102, 447, 235, 41840, 100]],
  ['naïve café', [2616, 38776, 40304]],
  // The byte order mark is no space, and U+0085 is a space: JavaScript's \s has both the other way round.
  ['\ufeffHi', [171, 119, 123, 17250]],
  ['a\u0085b', [64, 126, 227, 65]],
  ['', []],
])('GPT-2 encodes %j as tiktoken does', (input, ids) => {
  expect([...gpt2.encode(input)]).toEqual(ids);
  expect(gpt2.decode(ids)).toBe(input);
});

test('every tokenizer has its size and its end of text', () => {
  expect([gpt2.vocabSize, byte.vocabSize, char.vocabSize]).toEqual([50257, 256, new Set(text).size]);
  expect([gpt2.endOfText, byte.endOfText, char.endOfText]).toEqual([50256, null, null]);
  expect(gpt2.decode([50256])).toBe('<|endoftext|>');
});

test('gpt2 and byte decode any text they encoded, exactly', () => {
  fc.assert(
    fc.property(fc.string({ unit: 'binary', maxLength: 60 }), (input) => {
      for (const tokenizer of [gpt2, byte]) expect(tokenizer.decode(tokenizer.encode(input))).toBe(input);
    }),
    { numRuns: 500 },
  );
});

test('a lone surrogate is read as U+FFFD', () => {
  const replacing = charAlphabet('a\ud800');
  expect(replacing).toBe('a\ufffd');
  for (const [, tokenizer] of all.slice(0, 2)) expect(tokenizer.decode(tokenizer.encode('a\udc00b'))).toBe('a\ufffdb');
});

test.each(all)('%s streams the text it decodes, never half a character', (_name, tokenizer) => {
  const ids = tokenizer.encode(text);
  const decoder = tokenizer.stream();
  const parts = Array.from(ids, (id) => decoder.push(id));
  expect(decoder.flush()).toBe('');
  expect(parts.join('')).toBe(text);
  expect(parts.join('')).toBe(tokenizer.decode(ids));
  for (const part of parts) expect(part).not.toMatch(/\ufffd|\p{Surrogate}/u);
});

test('flush returns U+FFFD for bytes that never become a character', () => {
  const decoder = byte.stream();
  const euro = [...byte.encode('€')];
  expect(euro.map((id) => decoder.push(id))).toEqual(['', '', '€']);
  expect(decoder.push(euro[0])).toBe('');
  expect(decoder.flush()).toBe('\ufffd');
  expect(decoder.push(65)).toBe('A');
  expect(byte.decode([euro[0], 65])).toBe('\ufffdA');
});

test.each(all)('%s decodes ids it does not know to nothing', (_name, tokenizer) => {
  const known = tokenizer.encode('h')[0];
  expect(tokenizer.decode([tokenizer.vocabSize, 2 ** 31, -1, known, 0.5])).toBe('h');
  expect(tokenizer.stream().push(999_999)).toBe('');
});

test("an alphabet is the sorted set of characters, and a character's place is its id", async () => {
  const alphabet = charAlphabet('banana 😀');
  expect(alphabet).toBe(' abn😀');
  const tokenizer = await createTokenizer({ type: 'char', alphabet });
  expect([...tokenizer.encode('nab😀')]).toEqual([3, 1, 2, 4]);
  expect(tokenizer.decode([3, 1, 2, 4])).toBe('nab😀');
});

test('a character outside the alphabet is refused by name', () => {
  expect(() => char.encode('hz')).toThrow(
    expect.objectContaining({
      code: 'invalid_spec',
      message: expect.stringContaining('"z" (U+007A)') as string,
    }) as Error,
  );
});

test.each(['', 'ba', 'aa'])('alphabet %j is refused', async (alphabet) => {
  await expect(createTokenizer({ type: 'char', alphabet })).rejects.toMatchObject({ code: 'invalid_spec' });
});

test('the time for a text without a break is about linear in its length', () => {
  // 400 times "a" is 100 times the token "aaaa", and so on for any length. A quadratic merge would take minutes here.
  const ids = gpt2.encode('a'.repeat(400_000));
  expect(ids).toHaveLength(100_000);
  expect(ids.every((id) => id === 24794)).toBe(true);
  expect(gpt2.encode(' '.repeat(200_000))).toHaveLength(200_000);
});

test('a long text that is cut at words encodes as its parts do', () => {
  const sentence = " The quick brown fox's tail wasn't 12 cm long.";
  const once = [...gpt2.encode(sentence)];
  const many = gpt2.encode(sentence.repeat(20_000));
  expect(many).toHaveLength(20_000 * once.length);
  expect(many.every((id, i) => id === once[i % once.length])).toBe(true);
});

test.each<[string, TokenizerSpec]>([
  ['gpt2', { type: 'gpt2' }],
  ['bpe', { type: 'bpe', tokens: ['a', null, 'Ã', '©', 'aÃ', '<|endoftext|>'], merges: ['a Ã'], special: [5] }],
  ['byte', { type: 'byte' }],
  ['char', { type: 'char', alphabet: charAlphabet(`${text}\ufeff\n`) }],
])('the table of the %s tokenizer decodes as the tokenizer does', async (_name, spec) => {
  const tokenizer = await createTokenizer(spec);
  const table = tokenTable(tokenizer);
  expect(table.ends).toHaveLength(tokenizer.vocabSize);
  const decoding = tableDecoding(table);
  const V = tokenizer.vocabSize;
  for (let id = 0; id < V; id++) {
    const alone = tokenizer.decode([id]);
    if (decoding.decodeOne(id) !== alone || decoding.decode([id]) !== alone) throw new Error(`token ${id}`);
  }
  const ids = fc.array(fc.oneof(fc.integer({ min: 0, max: V - 1 }), fc.constantFrom(-1, V, 2 ** 31, 0.5)));
  fc.assert(
    fc.property(ids, (some) => {
      const [expected, stream] = [tokenizer.stream(), decoding.stream()];
      for (const id of some) expect(stream.push(id)).toBe(expected.push(id));
      expect(stream.flush()).toBe(expected.flush());
      expect(decoding.decode(some)).toBe(tokenizer.decode(some));
    }),
    { numRuns: 300, seed: 1 },
  );
});
