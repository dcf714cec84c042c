// Checks what each token of a sequence shows: whole characters, nothing that a stop string takes back, and the rest with the last
// token.

import { expect, test } from 'vitest';
import { SequenceText } from '../../../src/daemon/serving/sequence-text.ts';
import { createTokenizer } from '../../../src/model/text/create-tokenizer.ts';

const byte = await createTokenizer({ type: 'byte' });
const GOES_ON = { isStopId: false, isLast: false };
const LAST = { isStopId: false, isLast: true };
const STOP_ID = { isStopId: true, isLast: true };
const idsOf = (text: string): number[] => [...byte.encode(text)];
const textWith = (stop: string[], continued: number[] = []): SequenceText =>
  new SequenceText(byte, { spec: { stop }, continued });

test('bytes wait until their character is whole, and what is left of a character comes with the last token', () => {
  const text = textWith([]);
  const [a, b, c] = idsOf('€');
  expect([a, b, c, a].map((id) => text.next(id, GOES_ON).text)).toEqual(['', '', '€', '']);
  expect(text.next(b, LAST)).toEqual({ text: '\ufffd', stopped: false });
});

test('text that may become a stop string waits, and is shown when it does not become one', () => {
  const text = textWith(['stop']);
  expect(idsOf('a stock').map((id) => text.next(id, GOES_ON).text)).toEqual(['a', ' ', '', '', '', 'stoc', 'k']);
  const held = textWith(['stop']);
  expect(idsOf('st').map((id, i) => held.next(id, i === 1 ? LAST : GOES_ON))).toEqual([
    { text: '', stopped: false },
    { text: 'st', stopped: false },
  ]);
});

test('a stop string ends the sequence, and neither it nor anything after it is shown', () => {
  const text = textWith(['op', '\ufffd']);
  expect(idsOf('a stop').map((id) => text.next(id, GOES_ON))).toEqual([
    ...['a', ' ', 's', 't', ''].map((shown) => ({ text: shown, stopped: false })),
    { text: '', stopped: true },
  ]);
  // This stop string only appears when the last token leaves an incomplete character.
  expect(textWith(['\ufffd']).next(0xe2, LAST)).toEqual({ text: '', stopped: true });
});

test("a stop id's own text is not shown, but the text that was held back before it is", () => {
  const text = textWith(['stop']);
  expect(idsOf('st').map((id) => text.next(id, GOES_ON).text)).toEqual(['', '']);
  expect(text.next(idsOf('o')[0], STOP_ID)).toEqual({ text: 'st', stopped: false });
});

test('after an interruption, text of earlier ids is not shown again unless it was still held back', () => {
  const [a, b, c] = idsOf('€');
  const text = textWith(['€x'], [...idsOf('ab'), a, b]);
  expect(text.isStopped).toBe(false);
  expect([text.next(c, GOES_ON).text, text.next(idsOf('y')[0], GOES_ON).text]).toEqual(['', '€y']);
  expect(textWith(['b'], idsOf('abc')).isStopped).toBe(true);
});

test('with logprobs tokens are listed with their own texts, and without a tokenizer with none', () => {
  const token = { id: 65, logprob: -1, top: [{ id: 0xe2, logprob: -2 }] };
  const spec = { stop: [], logprobs: 1 };
  expect(JSON.stringify(new SequenceText(byte, { spec, continued: [] }).listed(token))).toBe(
    '{"piece":"A","top":[{"id":226,"logprob":-2,"text":"\ufffd"}]}',
  );
  const idsOnly = new SequenceText(null, { spec, continued: [65] });
  expect(idsOnly.listed({ id: 65, logprob: -1 })).toEqual({ piece: '' });
  expect(idsOnly.next(65, LAST)).toEqual({ text: '', stopped: false });
  expect(textWith([]).listed(token)).toEqual({});
});
