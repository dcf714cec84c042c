// From the body of a request for completions to the specs of its jobs, one a prompt. What is left out has OpenAI's default:
// 16 tokens, temperature 1, and a seed of chance, which the job's spec keeps.

import type { IncomingMessage } from 'node:http';
import { GptdError } from '../../../model/errors.ts';
import { CHOICES_MAX, completionRequest, FieldError, type CompletionRequest } from './protocol.ts';
import { describeIssue } from '../../protocol/errors.ts';
import { LIMITS } from '../../protocol/fields.ts';
import type { JobSpecInputs } from '../../protocol/kinds.ts';

const MAX_TOKENS_DEFAULT = 16;
const TEMPERATURE_DEFAULT = 1;

/** Throws `limit_exceeded` and `invalid_spec`, the latter with the field that is at fault. */
export async function readCompletionRequest(request: IncomingMessage): Promise<CompletionRequest> {
  let body: unknown;
  try {
    body = JSON.parse(await readBody(request));
  } catch (error) {
    if (error instanceof GptdError) throw error;
    throw new GptdError('invalid_spec', 'The body is not JSON: send an object with model and prompt.', {
      cause: error,
    });
  }
  const parsed = completionRequest.safeParse(body);
  if (!parsed.success) {
    const issue = parsed.error.issues[0];
    const param = issue.code === 'unrecognized_keys' ? issue.keys[0] : issue.path.at(0);
    throw new FieldError(String(param ?? ''), `The request is refused: ${describeIssue(parsed.error)}.`);
  }
  checkTogether(parsed.data);
  return parsed.data;
}

async function readBody(request: IncomingMessage): Promise<string> {
  const parts: Buffer[] = [];
  let sizeBytes = 0;
  // The connection has to live on for the answer.
  for await (const part of request.iterator({ destroyOnReturn: false }) as AsyncIterable<Buffer>) {
    sizeBytes += part.length;
    if (sizeBytes > LIMITS.messageBytesMax) {
      request.resume();
      throw new GptdError('limit_exceeded', `The body is too long: at most ${LIMITS.messageBytesMax} bytes are taken.`);
    }
    parts.push(part);
  }
  return Buffer.concat(parts).toString('utf8');
}

function checkTogether(request: CompletionRequest): void {
  const { echo, logprobs, n, stream, stream_options: options } = request;
  const choiceCount = promptsOf(request).length * (n ?? 1);
  if (choiceCount > CHOICES_MAX) {
    throw new FieldError('n', `The request asks for ${choiceCount} answers: at most ${CHOICES_MAX} are given.`);
  }
  if (echo === true && typeof logprobs === 'number') {
    throw new FieldError('echo', 'echo with logprobs is not supported: logprobs are those of generated tokens.');
  }
  if (options !== null && options !== undefined && stream !== true) {
    throw new FieldError('stream_options', 'stream_options is given without stream: true.');
  }
}

/** Texts or lists of ids, each of which is a prompt of its own. */
export function promptsOf({ prompt }: CompletionRequest): readonly (string | readonly number[])[] {
  if (typeof prompt === 'string') return [prompt];
  return prompt.every((entry) => typeof entry === 'number') ? [prompt] : prompt;
}

/** One spec a prompt, in order. `seed` is what the jobs get when the request names none. */
export function completionSpecs(request: CompletionRequest, seed: number): JobSpecInputs['generate'][] {
  const { stop } = request;
  const sampling = {
    maxTokens: request.max_tokens ?? MAX_TOKENS_DEFAULT,
    temperature: request.temperature ?? TEMPERATURE_DEFAULT,
    topK: request.top_k ?? undefined,
    topP: request.top_p ?? undefined,
    minP: request.min_p ?? undefined,
    repetitionPenalty: request.repetition_penalty ?? undefined,
    presencePenalty: request.presence_penalty ?? undefined,
    frequencyPenalty: request.frequency_penalty ?? undefined,
    logitBias: request.logit_bias ?? undefined,
    seed: request.seed ?? seed,
    stop: typeof stop === 'string' ? [stop] : (stop ?? []),
    stopIds: request.stop_token_ids ?? [],
    n: request.n ?? 1,
    logprobs: request.logprobs ?? undefined,
  };
  return promptsOf(request).map((prompt) => ({
    model: request.model,
    ...(typeof prompt === 'string' ? { prompt } : { promptIds: [...prompt] }),
    ...sampling,
  }));
}
