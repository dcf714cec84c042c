// Checks the bounds of a generating job's spec: what is refused, what is accepted, and which defaults are filled in.

import { expect, test } from 'vitest';
import { LIMITS } from '../../../src/daemon/protocol/fields.ts';
import { parseSpec } from '../../../src/daemon/edge/rpc.ts';

const ASKED = { model: 'm', prompt: 'x' };

test('a spec without options is greedy, for one sample, and has every default filled in', () => {
  expect(parseSpec('generate', ASKED)).toEqual({
    ...ASKED,
    maxTokens: 50,
    temperature: 0,
    seed: 123,
    stop: [],
    stopIds: [],
    bannedIds: [],
    n: 1,
    onContextFull: 'stop',
    speculate: true,
  });
});

test.each([
  { temperature: -0.1 },
  { temperature: 100.1 },
  { temperature: NaN },
  { topK: 0 },
  { topK: 1.5 },
  { topP: 0 },
  { topP: 1.01 },
  { minP: -0.1 },
  { minP: 1.1 },
  { repetitionPenalty: 0 },
  { presencePenalty: 2.1 },
  { frequencyPenalty: -2.1 },
  { logitBias: { 5: 100.5 } },
  { logitBias: { '-5': 1 } },
  { logitBias: { '05': 1 } },
  { logitBias: { five: 1 } },
  { logitBias: [1] },
  { bannedIds: [-1] },
  { bannedIds: 'x' },
  { stopIds: [0.5] },
  { stopIds: Array<number>(LIMITS.listedIdsMax + 1).fill(0) },
  { stop: [''] },
  { stop: Array<string>(17).fill('x') },
  { stop: ['x'.repeat(1025)] },
  { stop: ['\uD83D'] },
  { maxTokens: 0 },
  { n: 0 },
  { n: 65 },
  { logprobs: -1 },
  { logprobs: 21 },
  { seed: -1 },
  { seed: 2 ** 53 },
  { onContextFull: 'wrap' },
  { quantize: 'int2' },
  { speculate: 'yes' },
  { model: 'm@latest' },
])('%j is refused in a sentence that names the field', (fields) => {
  const [field] = Object.keys(fields);
  expect(() => parseSpec('generate', { ...ASKED, ...fields })).toThrow(
    expect.objectContaining({
      code: 'invalid_spec',
      message: expect.stringMatching(`^The generate spec is refused: ${field}\\b.+\\.$`) as string,
    }) as Error,
  );
});

test.each([
  { temperature: 100, topK: 1, topP: 1, minP: 0, repetitionPenalty: 100 },
  { presencePenalty: -2, frequencyPenalty: 2, logitBias: { 0: -100, 50256: 100 } },
  { bannedIds: [0, 1], stopIds: [50256], stop: ['\u{1f600}', '\n'], logprobs: 0 },
  { n: 64, logprobs: 20, onContextFull: 'slide', quantize: 'int4', speculate: false, seed: 2 ** 53 - 1 },
])('%j is taken as it is', (fields) => {
  expect(parseSpec('generate', { ...ASKED, ...fields })).toMatchObject(fields);
});
