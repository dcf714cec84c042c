// Checks how stored files become token ids, piece by piece: the ids are those of the whole text, whatever the pieces.

import { describe, expect, onTestFinished, test } from 'vitest';
import { createTokenizer } from '../../../src/model/text/create-tokenizer.ts';
import type { TokenizerSpec } from '../../../src/model/text/tokenizer.ts';
import { openReader } from '../../../src/workers/store/reader.ts';
import type { TokenizedData, TokenizeProgress, TokenizeRequest } from '../../../src/workers/data/messages.ts';
import type { Store } from '../../../src/workers/store/thread.ts';
import { tokenize } from '../../../src/workers/data/tokenize.ts';
import { openedStore } from '../store/fixture.ts';

const PIECE = 1 << 20;

function storeBlob(store: Store, bytes: Uint8Array): string {
  const { uploadId } = store.beginBlob({});
  for (let at = 0; at < bytes.length; at += 3_000_001) {
    store.putBlobChunk({ uploadId, bytes: bytes.slice(at, at + 3_000_001) });
  }
  return store.commitBlob({ uploadId }).hash;
}

async function tokenized(
  files: readonly { readonly bytes: Uint8Array; readonly format: 'text' | 'jsonl' | 'tokens' }[],
  request: Omit<TokenizeRequest, 'files'>,
): Promise<{ data: TokenizedData; ids: Uint16Array | Uint32Array; progress: TokenizeProgress[] }> {
  const { store, dataDir } = openedStore();
  const reader = openReader(dataDir);
  onTestFinished(() => reader.close());
  const stored = files.map(({ bytes, format }) => ({ digest: storeBlob(store, bytes), format }));
  const progress: TokenizeProgress[] = [];
  for await (const next of tokenize(reader, { files: stored, ...request })) progress.push(next);
  const data = progress.at(-1)!.dataset!;
  return { data, ids: data.wideTokens ? new Uint32Array(data.tokens) : new Uint16Array(data.tokens), progress };
}

const utf8 = (text: string): Uint8Array => new TextEncoder().encode(text);
const text = (content: string) => ({ bytes: utf8(content), format: 'text' }) as const;

/**
 * A text of many pieces with words, runs of white space of every kind, contractions, digits and characters of one to four bytes.
 */
const LONG = Array.from(
  { length: 90_000 },
  (_, i) => `wo${i % 911}rd's ${'  \n\t\u00a0'.slice(0, i % 6)}né ${i}…😀 \u2003x${'\n'.repeat(i % 3)}`,
).join('');

describe('a text of several pieces', () => {
  test.each<[string, TokenizerSpec]>([
    ['gpt2', { type: 'gpt2' }],
    ['byte', { type: 'byte' }],
  ])('has the ids of the whole under %s', async (_name, spec) => {
    const { data, ids, progress } = await tokenized([text(LONG)], { tokenizer: spec, vocabSize: 50257 });
    const whole = (await createTokenizer(spec)).encode(LONG);
    expect(ids.length).toBe(whole.length);
    expect(ids.every((id, i) => id === whole[i])).toBe(true);
    const bytes = utf8(LONG).length;
    expect(progress.length).toBeGreaterThanOrEqual(Math.floor(bytes / PIECE));
    expect(data).toMatchObject({ byteCount: bytes, characterCount: Array.from(LONG).length, tokenCount: whole.length });
    const done = progress.map(({ doneBytes }) => doneBytes);
    expect(done).toEqual([...done].sort((a, b) => a - b));
    expect(done.at(-1)).toBe(bytes);
  });

  test('finds its alphabet in a first pass, line breaks between files included', async () => {
    const files = [text('ab ba'), text('bc')];
    const { data, ids } = await tokenized(files, { tokenizer: { type: 'char', alphabet: null }, vocabSize: 10 });
    expect(data.tokenizer).toEqual({ type: 'char', alphabet: '\n abc' });
    expect([...ids]).toEqual([2, 3, 1, 3, 2, 0, 3, 4]);
    expect(data.characterCount).toBe(7);
  });

  test('without white space is one piece', async () => {
    const { ids } = await tokenized([text('x'.repeat(2 * PIECE + 5))], { tokenizer: { type: 'byte' }, vocabSize: 256 });
    expect(ids.length).toBe(2 * PIECE + 5);
  });
});

test('lines of .jsonl are documents, separated by the end of text when the tokenizer has one', async () => {
  const lines = '{"text":"one two"}\n\n{"text":"thr\\u0065e","id":3}\n';
  const files = [{ bytes: utf8(lines), format: 'jsonl' as const }, text('four')];
  const { ids } = await tokenized(files, { tokenizer: { type: 'gpt2' }, vocabSize: 50257 });
  const gpt2 = await createTokenizer({ type: 'gpt2' });
  expect([...ids]).toEqual([...gpt2.encode('one two'), 50256, ...gpt2.encode('three'), 50256, ...gpt2.encode('four')]);
  const bytes = await tokenized(files, { tokenizer: { type: 'byte' }, vocabSize: 256 });
  expect(new TextDecoder().decode(Uint8Array.from(bytes.ids))).toBe('one two\nthree\nfour');
});

describe('files of token ids', () => {
  const tokens = { tokenizer: null, vocabSize: 1000 };
  const uint16 = (ids: readonly number[]): Uint8Array => new Uint8Array(Uint16Array.from(ids).buffer);
  const header = (version: number, count: number): Uint8Array =>
    new Uint8Array(Int32Array.from({ length: 256 }, (_, i) => [20240520, version, count][i] ?? 0).buffer);
  const file = (...parts: Uint8Array[]) => ({ bytes: Buffer.concat(parts), format: 'tokens' }) as const;

  test('are read as they are, or without the header of 256 int32 that llm.c writes', async () => {
    const { data, ids } = await tokenized([file(header(1, 3), uint16([5, 6, 7])), file(uint16([8, 999]))], tokens);
    expect([...ids]).toEqual([5, 6, 7, 8, 999]);
    expect(data).toMatchObject({ tokenCount: 5, characterCount: 0, byteCount: 0, tokenizer: null, wideTokens: false });
  });

  test.each([
    ['a header that promises more', file(header(1, 4), uint16([5, 6, 7])), /promises 4 tokens and 3 follow/],
    ['a header of another version', file(header(7, 3), uint16([5, 6, 7])), /header of version 7: version 1/],
    ['half an id', file(Uint8Array.of(1, 2, 3)), /has 3 bytes: uint16 ids need an even number/],
    ['an id beyond the vocabulary', file(header(1, 2), uint16([5, 1000])), /Token 1 of the data is 1000: .* 0 to 999/],
  ])('with %s are refused', async (_what, bad, message) => {
    await expect(tokenized([bad], tokens)).rejects.toThrow(
      expect.objectContaining({ code: 'invalid_spec', message: expect.stringMatching(message) as string }),
    );
  });
});

test.each([
  ['bytes that are not UTF-8', { bytes: Uint8Array.of(0x61, 0xe9), format: 'text' as const }, /not UTF-8/],
  ['a line that is not JSON', { bytes: utf8('{"text":"a"}\nb'), format: 'jsonl' as const }, /Line 2 .* not JSON/],
  ['a line without a text', { bytes: utf8('{"body":"a"}'), format: 'jsonl' as const }, /Line 1 .* no "text"/],
  ['token ids for a text', { bytes: utf8('ab'), format: 'tokens' as const }, /need --tokenizer none/],
])('%s are refused', async (_what, file, message) => {
  await expect(tokenized([file], { tokenizer: { type: 'byte' }, vocabSize: 256 })).rejects.toThrow(message);
});
