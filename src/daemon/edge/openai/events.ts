// What the events that end a generating job say, read as they come from the store, where their data is plain JSON.

import { z } from 'zod';
import { ERROR_CODES, GptdError } from '../../../model/errors.ts';
import type { StoredEvent } from '../../../workers/store/messages.ts';
import type { GeneratedSample, GenerateResult } from '../../protocol/generation.ts';
import { unreadable } from '../../threads/stored-events.ts';

/** The part of a job's result that a completion tells. */
export type Generated = Pick<GenerateResult, keyof GeneratedSample | 'samples'> & {
  readonly usage: Pick<GenerateResult['usage'], 'promptTokens' | 'completionTokens'>;
};

const sample = z.object({
  text: z.string(),
  ids: z.array(z.number()),
  reason: z.enum(['stop', 'length', 'context']),
});
const succeeded = z.object({
  result: sample.extend({
    samples: z.array(sample).exactOptional(),
    usage: z.object({ promptTokens: z.number(), completionTokens: z.number() }),
  }),
});
const failed = z.object({ error: z.object({ code: z.enum(ERROR_CODES).catch('engine_failed'), message: z.string() }) });

/** Throws `corrupt` when the data is none of a generation. */
export function readGenerated(event: StoredEvent): Generated {
  const { data, success } = succeeded.safeParse(event.data);
  if (success) return data.result;
  throw unreadable(event);
}

/** The error that a job has failed with. Throws `corrupt` when the data tells none. */
export function readFailure(event: StoredEvent): GptdError {
  const { data, success } = failed.safeParse(event.data);
  if (success) return new GptdError(data.error.code, data.error.message);
  throw unreadable(event);
}
