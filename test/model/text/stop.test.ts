// Checks what a reader of a stream sees: whole characters, nothing that is taken back, and nothing that is held back without a
// reason.

import fc from 'fast-check';
import { beforeAll, describe, expect, test } from 'vitest';
import { stopFilter } from '../../../src/model/text/stop.ts';
import { createTokenizer } from '../../../src/model/text/create-tokenizer.ts';
import type { Tokenizer } from '../../../src/model/text/tokenizer.ts';

/** Texts of few letters often contain a stop text. Some of these letters take two, three and four bytes. */
const letter = fc.constantFrom('a', 'b', '\n', '\u00e9', '\u20ac', '\u{1f600}', '\u{1f601}');
const word = (minLength: number, maxLength: number): fc.Arbitrary<string> =>
  fc.array(letter, { minLength, maxLength }).map((letters) => letters.join(''));
const stopTexts = fc.array(word(1, 4), { maxLength: 4 });

interface Shown {
  /** Holds all text that was shown after each piece. */
  readonly texts: readonly string[];
  readonly stopped: boolean;
}

/** Shows the pieces as a stream does, up to a stop text or to the end. */
function show(pieces: readonly string[], stops: readonly string[]): Shown {
  const filter = stopFilter(stops);
  const texts: string[] = [];
  let shown = '';
  for (const piece of pieces) {
    const { text, stopped } = filter.push(piece);
    texts.push((shown += text));
    if (stopped) return { texts, stopped };
  }
  texts.push(shown + filter.flush());
  return { texts, stopped: false };
}

/**
 * Returns what the definition shows: when a piece completes a stop text, everything before the first stop text, and else
 * everything.
 */
function reference(pieces: readonly string[], stops: readonly string[]): { text: string; pieceCount: number } {
  let whole = '';
  for (const [i, piece] of pieces.entries()) {
    whole += piece;
    const found = stops.map((stop) => whole.indexOf(stop)).filter((at) => at >= 0);
    if (found.length > 0) return { text: whole.slice(0, Math.min(...found)), pieceCount: i + 1 };
  }
  return { text: whole, pieceCount: pieces.length };
}

const wholeCharacters = (text: string): boolean => !/\p{Surrogate}/u.test(text);

function expectHonest(pieces: readonly string[], stops: readonly string[]): void {
  const { texts, stopped } = show(pieces, stops);
  const wanted = reference(pieces, stops);
  expect(texts.at(-1)).toBe(wanted.text);
  expect(texts).toHaveLength(stopped ? wanted.pieceCount : pieces.length + 1);
  for (const [i, text] of texts.entries()) {
    expect(wanted.text.startsWith(text)).toBe(true);
    expect(wholeCharacters(text)).toBe(true);
    for (const stop of stops) expect(text).not.toContain(stop);
    const held = pieces
      .slice(0, i + 1)
      .join('')
      .slice(text.length);
    const ended = i === texts.length - 1;
    if (!ended && held !== '')
      expect(stops.some((stop) => stop.length > held.length && stop.startsWith(held))).toBe(true);
  }
}

test('pieces of any length are shown as the definition says, at once, and never taken back', () => {
  fc.assert(
    fc.property(fc.array(word(0, 4), { maxLength: 12 }), stopTexts, (pieces, stops) => expectHonest(pieces, stops)),
    { numRuns: 3000, seed: 1 },
  );
});

test('a stop text that spans pieces is found, and text that only begins as one is shown', () => {
  expect(show(['one st', 'o', 'p two'], ['stop'])).toEqual({ texts: ['one ', 'one ', 'one '], stopped: true });
  expect(show(['one st', 'o', 'ck'], ['stop']).texts).toEqual(['one ', 'one ', 'one stock', 'one stock']);
  expect(show(['one st'], ['stop']).texts).toEqual(['one ', 'one st']);
});

describe.each(['byte', 'gpt2'] as const)('with the %s tokenizer', (type) => {
  let tokenizer: Tokenizer;
  beforeAll(async () => {
    tokenizer = await createTokenizer({ type });
  });

  const piecesOf = (ids: readonly number[]): string[] => {
    const decoder = tokenizer.stream();
    return [...ids.map((id) => decoder.push(id)), decoder.flush()];
  };

  test('tokens of a text are shown in whole characters, up to a stop text', () => {
    fc.assert(
      fc.property(word(0, 12), stopTexts, (text, stops) => {
        const pieces = piecesOf(Array.from(tokenizer.encode(text)));
        expect(pieces.join('')).toBe(text);
        expectHonest(pieces, stops);
      }),
      { numRuns: 1000, seed: 1 },
    );
  });

  test('random tokens are shown as their bytes decode, in whole characters', () => {
    fc.assert(
      fc.property(fc.array(fc.integer({ min: 0, max: tokenizer.vocabSize - 1 }), { maxLength: 30 }), (ids) => {
        const pieces = piecesOf(ids);
        expect(pieces.join('')).toBe(tokenizer.decode(ids));
        expect(pieces.every(wholeCharacters)).toBe(true);
        expectHonest(pieces, ['\uFFFD\uFFFD', 'e']);
      }),
      { numRuns: 1000, seed: 1 },
    );
  });
});
