// Checks how the events of a generating job are read as they come from the store.

import { expect, test } from 'vitest';
import { readFailure, readGenerated } from '../../../../src/daemon/edge/openai/events.ts';
import { readToken } from '../../../../src/daemon/threads/stored-events.ts';
import type { StoredEvent } from '../../../../src/workers/store/messages.ts';

const event = (type: string, data: unknown): StoredEvent => ({ jobId: 'j', seq: 7, at: 1, type, data });
const corrupt = (type: string): Error =>
  expect.objectContaining({
    code: 'corrupt',
    message: `The stored event 7 of the job j cannot be read as one of type ${type}.`,
  }) as Error;

test('tokens, results and failures are read, and an error code of another version counts as a fault of the engine', () => {
  const token = { id: 3, text: 'a', logprob: -0.5, index: 0, sample: 1 };
  expect(readToken(event('token', token))).toBe(token);
  const result = {
    text: 'ab',
    ids: [1, 2],
    reason: 'length',
    samples: [{ text: 'ab', ids: [1, 2], reason: 'length' }],
    usage: { promptTokens: 1, completionTokens: 2 },
  };
  expect(readGenerated(event('succeeded', { result: { ...result, timings: {} } }))).toEqual(result);
  expect(readFailure(event('failed', { error: { code: 'corrupt', message: 'm' } }))).toMatchObject({ code: 'corrupt' });
  const newer = { error: { code: 'melted', message: 'm' } };
  expect(readFailure(event('failed', newer))).toMatchObject({ code: 'engine_failed', message: 'm' });
});

test.each([null, 'a', {}, { id: '3', text: 'a', logprob: 0, index: 0 }, { id: 3, logprob: 0, index: 0 }])(
  'data that says something else is corrupt, with the name of the event: %j',
  (data) => {
    expect(() => readToken(event('token', data))).toThrow(corrupt('token'));
    expect(() => readGenerated(event('succeeded', data))).toThrow(corrupt('succeeded'));
    expect(() => readFailure(event('failed', data))).toThrow(corrupt('failed'));
  },
);
