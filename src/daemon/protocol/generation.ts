// This file defines the spec of a `generate` job, its `token` events and its result. docs/guide/serving.md says how sampling
// reads the fields.

import { z } from 'zod';
import { CONFIG_MAX } from '../../model/config.ts';
import { integer, LIMITS, modelReference, probability, seed } from './fields.ts';

const penalty = z.number().min(-2).max(2);
const tokenIds = z.array(integer(0, CONFIG_MAX.vocab_size - 1)).max(LIMITS.listedIdsMax);
/** Maps token ids to biases. The ids are texts, because the keys of JSON are. */
const logitBias = z
  .record(z.string().regex(/^(0|[1-9]\d{0,8})$/, 'a token id is a whole number'), z.number().min(-100).max(100))
  .refine((biases) => Object.keys(biases).length <= LIMITS.listedIdsMax, {
    error: `it must have at most ${LIMITS.listedIdsMax} ids`,
  });

/** A lone surrogate is half of a character: to stop at it would cut a character in two. */
export const stopText = z
  .string()
  .min(1)
  .max(LIMITS.stopCharactersMax)
  .regex(/^\P{Surrogate}*$/u, 'it has half of a character');

export const generateSpec = z.strictObject({
  model: modelReference,
  prompt: z.string().max(LIMITS.promptCharactersMax).optional(),
  promptIds: z.array(integer(0, CONFIG_MAX.vocab_size)).max(CONFIG_MAX.context_length).optional(),
  maxTokens: integer(1, LIMITS.maxTokensMax).default(50),
  /** A temperature of 0 is greedy. */
  temperature: z.number().min(0).max(100).default(0),
  topK: integer(1, CONFIG_MAX.vocab_size).optional(),
  topP: probability.gt(0).optional(),
  minP: probability.optional(),
  repetitionPenalty: z.number().gt(0).max(100).optional(),
  presencePenalty: penalty.optional(),
  frequencyPenalty: penalty.optional(),
  logitBias: logitBias.optional(),
  /** The ids that are never generated. */
  bannedIds: tokenIds.default([]),
  seed,
  stop: z.array(stopText).max(LIMITS.stopsMax).default([]),
  /** The ids that end the generation. Their own text is not shown. */
  stopIds: tokenIds.default([]),
  /** The number of samples to generate. */
  n: integer(1, LIMITS.samplesMax).default(1),
  /** The number of likeliest tokens that each `token` event lists. */
  logprobs: integer(0, LIMITS.logprobsMax).optional(),
  onContextFull: z.enum(['stop', 'slide']).default('stop'),
  quantize: z.enum(['int8', 'int4']).optional(),
  /** Whether tokens are guessed ahead. Guesses are checked before they count, so they change the speed and nothing else. */
  speculate: z.boolean().default(true),
});

export interface TokenLogprob {
  readonly id: number;
  readonly text: string;
  /** The natural logarithm of the model's own probability, before penalties, biases, temperature and filters. */
  readonly logprob: number;
}

/** The data of a `token` event. */
export interface TokenData extends TokenLogprob {
  /** The number of the sample, from 0. It is absent when one sample was asked for. */
  readonly sample?: number;
  /** The number of the token within its sample, from 0. */
  readonly index: number;
  /** The text that can be shown now. An incomplete character, and text that a stop may take back, come with a later token. */
  readonly text: string;
  /** The token's own text, present only with `logprobs`. U+FFFD stands for bytes that are no character by themselves. */
  readonly piece?: string;
  /** The likeliest tokens with their own texts, the likeliest first. They are present only with `logprobs` above 0. */
  readonly top?: readonly TokenLogprob[];
}

export interface GeneratedSample {
  readonly text: string;
  readonly ids: readonly number[];
  readonly reason: 'stop' | 'length' | 'context';
}

/** `text`, `ids` and `reason` are those of the first sample. */
export interface GenerateResult extends GeneratedSample {
  /** Holds every sample, when more than one was asked for. */
  readonly samples?: readonly GeneratedSample[];
  readonly usage: {
    readonly promptTokens: number;
    readonly completionTokens: number;
    /** The number of prompt tokens of the first sample that were in the cache already. */
    readonly reusedTokens: number;
  };
  /** The number of ids that were guessed in all samples, and the number of those that were right. */
  readonly speculation: { readonly drafted: number; readonly accepted: number };
  readonly timings: {
    /** The time from submission to the first row of the prompt, without the loading. */
    readonly queueMs: number;
    readonly loadMs: number;
    readonly prefillMs: number;
    readonly firstTokenMs: number;
    readonly tokensPerSecond: number;
  };
}
