// The part of the wire contract that is OpenAI's: the body of POST /v1/completions and what answers it. Bounds are those of a
// generating job's spec where it has the field; what OpenAI offers and gptd does not is refused by name. A null is as good as
// absent. Unknown keys are refused.

import { z } from 'zod';
import { GptdError } from '../../../model/errors.ts';
import { generateSpec, stopText } from '../../protocol/generation.ts';
import { integer, LIMITS, modelReference } from '../../protocol/fields.ts';

const { shape } = generateSpec;
/** The largest number of answers to one request, which are its prompts times its samples. */
export const CHOICES_MAX = 64;

const promptText = z.string().max(LIMITS.promptCharactersMax);
const promptIds = shape.promptIds.unwrap();
const prompts = <T extends z.ZodType>(prompt: T): z.ZodArray<T> => z.array(prompt).min(1).max(CHOICES_MAX);

/** What is left out has OpenAI's default: see openai/request.ts. */
export const completionRequest = z.strictObject({
  model: modelReference,
  prompt: z.union([promptText, promptIds.min(1), prompts(promptText), prompts(promptIds)], {
    error: `it must be a text, a list of token ids, or a list of at most ${CHOICES_MAX} of either`,
  }),
  max_tokens: integer(1, LIMITS.maxTokensMax).nullish(),
  temperature: z.number().min(0).max(2).nullish(),
  top_p: shape.topP.nullish(),
  n: integer(1, LIMITS.samplesMax).nullish(),
  logprobs: shape.logprobs.nullish(),
  echo: z.boolean().nullish(),
  stop: z.union([stopText, shape.stop.unwrap()]).nullish(),
  presence_penalty: shape.presencePenalty.nullish(),
  frequency_penalty: shape.frequencyPenalty.nullish(),
  logit_bias: shape.logitBias.nullish(),
  seed: shape.seed.unwrap().nullish(),
  stream: z.boolean().nullish(),
  stream_options: z
    .strictObject({ include_usage: z.boolean().nullish(), include_obfuscation: z.boolean().nullish() })
    .nullish(),
  /** Who asks, for OpenAI's own statistics: gptd keeps none. */
  user: z.string().max(1024).nullish(),
  best_of: z.literal(1, { error: 'only 1 is supported: ask for n samples and choose among them' }).nullish(),
  suffix: z.literal('', { error: 'text cannot be inserted before a suffix: the model only continues' }).nullish(),
  // Beyond OpenAI's: what its clients send as extra fields to servers like this one.
  top_k: shape.topK.nullish(),
  min_p: shape.minP.nullish(),
  repetition_penalty: shape.repetitionPenalty.nullish(),
  stop_token_ids: shape.stopIds.unwrap().nullish(),
});

export type CompletionRequest = z.output<typeof completionRequest>;

export interface CompletionLogprobs {
  /** Each token's own text, or `token_id:N` where its bytes are no text by themselves. */
  readonly tokens: string[];
  readonly token_logprobs: number[];
  /** The likeliest tokens and, always, the one that was picked. */
  readonly top_logprobs: Record<string, number>[];
  /** Characters before the token's shown text, within the choice's text. */
  readonly text_offset: number[];
}

export interface CompletionChoice {
  readonly text: string;
  readonly index: number;
  readonly logprobs: CompletionLogprobs | null;
  readonly finish_reason: 'stop' | 'length' | null;
}

export interface CompletionUsage {
  readonly prompt_tokens: number;
  readonly completion_tokens: number;
  readonly total_tokens: number;
}

export interface Completion {
  readonly id: string;
  readonly object: 'text_completion';
  /** Seconds since 1970. */
  readonly created: number;
  readonly model: string;
  readonly system_fingerprint: string;
  readonly choices: readonly CompletionChoice[];
  /** The usage of all jobs. In a stream with `include_usage` it is null in all chunks but the last. */
  readonly usage?: CompletionUsage | null;
}

/** A fault of one field of a request. */
export class FieldError extends GptdError {
  readonly param: string;

  constructor(param: string, message: string) {
    super('invalid_spec', message);
    this.param = param;
  }
}
