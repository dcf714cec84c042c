// Checks how the events of a job with several samples become OpenAI's choices: pieces in any order of samples join to whole
// choices under their indices.

import { expect, test } from 'vitest';
import { joinPieces, JobChoices } from '../../../../src/daemon/edge/openai/choices.ts';
import type { CompletionChoice } from '../../../../src/daemon/edge/openai/protocol.ts';
import type { GeneratedSample, TokenData } from '../../../../src/daemon/protocol/generation.ts';

const token = (sample: number | undefined, index: number, text: string): TokenData => ({
  ...(sample === undefined ? {} : { sample }),
  index,
  id: 100 + index,
  text,
  logprob: -1 - index,
});

const ALONE: GeneratedSample = { text: '', ids: [], reason: 'context' };

const joined = (pieces: readonly CompletionChoice[]): CompletionChoice[] =>
  [...new Set(pieces.map(({ index }) => index))]
    .sort((a, b) => a - b)
    .map((index) => joinPieces(pieces.filter((piece) => piece.index === index)));

test('each sample has an index behind those of earlier prompts, its own prompt and its own reason', () => {
  const choices = new JobChoices({ firstIndex: 6, sampleCount: 3, prefix: 'Once ', logprobs: false });
  const pieces = [token(0, 0, 'a'), token(1, 0, ''), token(0, 1, 'b'), token(1, 1, 'c')].map((data) =>
    choices.token(data),
  );
  const samples = (['stop', 'length', 'context'] as const).map((reason) => ({ ...ALONE, reason }));
  const whole = joined([...pieces, ...choices.end({ ...samples[0], samples })]);
  expect(whole).toEqual([
    { index: 6, text: 'Once ab', logprobs: null, finish_reason: 'stop' },
    { index: 7, text: 'Once c', logprobs: null, finish_reason: 'length' },
    // This sample ended without any token.
    { index: 8, text: 'Once ', logprobs: null, finish_reason: 'length' },
  ]);
});

test('a token without a text of its own is named by its id, and offsets count the text that was shown', () => {
  const choices = new JobChoices({ firstIndex: 0, sampleCount: 1, prefix: '', logprobs: true });
  const top = [
    { id: 7, text: 'x', logprob: -0.5 },
    { id: 8, text: '\uFFFD', logprob: -0.7 },
  ];
  const pieces = [
    choices.token({ ...token(undefined, 0, 'ab'), piece: 'ab', top }),
    choices.token({ ...token(undefined, 1, ''), piece: '\uFFFD', top: [] }),
    choices.token({ ...token(undefined, 2, '\u20ac'), piece: '' }),
  ];
  expect(joinPieces([...pieces, ...choices.end(ALONE)]).logprobs).toEqual({
    tokens: ['ab', 'token_id:101', 'token_id:102'],
    token_logprobs: [-1, -2, -3],
    top_logprobs: [{ ab: -1, x: -0.5, 'token_id:8': -0.7 }, { 'token_id:101': -2 }, { 'token_id:102': -3 }],
    text_offset: [0, 2, 2],
  });
});
