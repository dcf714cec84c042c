// Generation on the wire: the spec of a generating job, its `token` events and what it results in. docs/guide/serving.md says how
// sampling reads the fields.

import { z } from 'zod';
import { CONFIG_MAX } from '../../model/config.ts';
import { integer, LIMITS, modelReference, probability, seed } from './fields.ts';

const penalty = z.number().min(-2).max(2);
const tokenIds = z.array(integer(0, CONFIG_MAX.vocab_size - 1)).max(LIMITS.listedIdsMax);
/** `{id: bias}`: keys of JSON are text. */
const logitBias = z
  .record(z.string().regex(/^(0|[1-9]\d{0,8})$/, 'a token id is a whole number'), z.number().min(-100).max(100))
  .refine((biases) => Object.keys(biases).length <= LIMITS.listedIdsMax, {
    error: `it must have at most ${LIMITS.listedIdsMax} ids`,
  });

/** Half a character would cut one in two. */
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
  /** 0 is greedy. */
  temperature: z.number().min(0).max(100).default(0),
  topK: integer(1, CONFIG_MAX.vocab_size).optional(),
  topP: probability.gt(0).optional(),
  minP: probability.optional(),
  repetitionPenalty: z.number().gt(0).max(100).optional(),
  presencePenalty: penalty.optional(),
  frequencyPenalty: penalty.optional(),
  logitBias: logitBias.optional(),
  /** Ids that are never generated. */
  bannedIds: tokenIds.default([]),
  seed,
  stop: z.array(stopText).max(LIMITS.stopsMax).default([]),
  /** Ids that end the generation; their own text is not shown. */
  stopIds: tokenIds.default([]),
  /** Samples to generate. */
  n: integer(1, LIMITS.samplesMax).default(1),
  /** How many of the likeliest tokens each `token` event lists. */
  logprobs: integer(0, LIMITS.logprobsMax).optional(),
  onContextFull: z.enum(['stop', 'slide']).default('stop'),
  quantize: z.enum(['int8', 'int4']).optional(),
  /** Drafts are checked before they count: they change the speed and nothing else. */
  speculate: z.boolean().default(true),
});

export interface TokenLogprob {
  readonly id: number;
  readonly text: string;
  /** Natural logarithm of the model's own probability: before penalties, biases, temperature and filters. */
  readonly logprob: number;
}

/** Of a `token` event. */
export interface TokenData extends TokenLogprob {
  /** From 0; absent when one sample was asked for. */
  readonly sample?: number;
  /** From 0 within its sample. */
  readonly index: number;
  /** What can be shown now: a character that is not complete and text that a stop may take back come with a later token. */
  readonly text: string;
  /** With `logprobs` only: the token's own text, U+FFFD for bytes that are no character by themselves. */
  readonly piece?: string;
  /** With `logprobs` above 0: the likeliest tokens, likeliest first, with their own texts. */
  readonly top?: readonly TokenLogprob[];
}

export interface GeneratedSample {
  readonly text: string;
  readonly ids: readonly number[];
  readonly reason: 'stop' | 'length' | 'context';
}

/** `text`, `ids` and `reason` are those of the first sample. */
export interface GenerateResult extends GeneratedSample {
  /** Every sample, when more than one was asked for. */
  readonly samples?: readonly GeneratedSample[];
  readonly usage: {
    readonly promptTokens: number;
    readonly completionTokens: number;
    /** Prompt tokens of the first sample that were in the cache already. */
    readonly reusedTokens: number;
  };
  /** Of all samples: ids that were guessed, and those of them that were right. */
  readonly speculation: { readonly drafted: number; readonly accepted: number };
  readonly timings: {
    /** From submission to the first row of the prompt, loading left out. */
    readonly queueMs: number;
    readonly loadMs: number;
    readonly prefillMs: number;
    readonly firstTokenMs: number;
    readonly tokensPerSecond: number;
  };
}
