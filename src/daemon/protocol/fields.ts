// This file defines the fields that the specs of several job kinds have: names, digests, numbers within bounds and data files.
// The limits are here because they are those bounds.

import { z } from 'zod';

/** Holds every bound of the protocol. The names say which of them count bytes or characters. */
export const LIMITS = {
  /** The bytes of one JSON-RPC text frame, and of the body of a request for completions. */
  messageBytesMax: 1 << 20,
  /** The bytes of one blob, which is a file of weights or of text. */
  blobBytesMax: 64 * 2 ** 30,
  promptCharactersMax: 1 << 19,
  maxTokensMax: 1 << 20,
  /** The number of samples of one generation. */
  samplesMax: 64,
  /** The number of likeliest tokens that a `token` event lists. */
  logprobsMax: 20,
  stopsMax: 16,
  stopCharactersMax: 1024,
  /** The number of ids in each of `logitBias`, `stopIds` and `bannedIds`. */
  listedIdsMax: 1 << 16,
  stepsMax: 1e9,
  batchSizeMax: 65536,
  dataFilesMax: 1024,
  listMax: 1000,
  /** Priorities go from -100 to 100. */
  priorityMax: 100,
} as const;

const MODEL_NAME_PATTERN = /^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$/;
export const modelName = z
  .string()
  .regex(
    MODEL_NAME_PATTERN,
    'a model name is 1 to 64 letters, digits, dots, dashes or underscores, a letter or digit first',
  );
/** A reference is NAME, NAME@STEP or NAME@best. */
export const modelReference = z
  .string()
  .regex(/^[A-Za-z0-9][A-Za-z0-9._-]{0,63}(@(best|\d{1,12}))?$/, 'a model is named NAME, NAME@STEP or NAME@best');
/** A digest is `sha256:<64 hex digits>`. The prefix may be left out on input, and parsing removes it. */
export const digest = z
  .string()
  .regex(/^(sha256:)?[0-9a-f]{64}$/, 'a digest is sha256: and 64 hexadecimal digits')
  .transform((text) => text.replace(/^sha256:/, ''));

export const integer = (min: number, max: number): z.ZodNumber => z.number().int().min(min).max(max);
export const probability = z.number().min(0).max(1);
export const seed = integer(0, 2 ** 53 - 1).default(123);

export const TOKENIZERS = ['gpt2', 'byte', 'char'] as const;
export type TokenizerName = (typeof TOKENIZERS)[number];
/** The tokenizers that a model may have. `bpe` is a vocabulary that came with imported weights. */
export type ModelTokenizerName = TokenizerName | 'bpe';

/**
 * The ways in which the bytes of a data file are read. The default is `tokens` (uint16) under `tokenizer: none`, and `text`
 * otherwise.
 */
const DATA_FORMATS = ['text', 'jsonl', 'tokens'] as const;
export type DataFormat = (typeof DATA_FORMATS)[number];

export const dataFile = z.union([
  digest.transform((hash): { digest: string; format?: DataFormat | undefined } => ({ digest: hash })),
  z.strictObject({ digest, format: z.enum(DATA_FORMATS).optional() }),
]);
