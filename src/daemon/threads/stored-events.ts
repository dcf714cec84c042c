// Events as they come from the store, where their data is plain JSON. Tokens come by the thousand, so they are checked by hand.

import { GptdError } from '../../model/errors.ts';
import type { StoredEvent } from '../../workers/store/messages.ts';
import type { TokenData } from '../protocol/generation.ts';

/** Throws `corrupt` when the event's data are not those of a token. */
export function readToken(event: StoredEvent): TokenData {
  if (isToken(event.data)) return event.data;
  throw unreadable(event);
}

function isToken(data: unknown): data is TokenData {
  if (typeof data !== 'object' || data === null) return false;
  const { id, text, logprob, index } = data as Readonly<Record<string, unknown>>;
  return typeof id === 'number' && typeof logprob === 'number' && typeof index === 'number' && typeof text === 'string';
}

export const unreadable = ({ jobId, seq, type }: StoredEvent): GptdError =>
  new GptdError('corrupt', `The stored event ${seq} of the job ${jobId} cannot be read as one of type ${type}.`);
