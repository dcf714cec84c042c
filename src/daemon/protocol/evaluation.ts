// This file defines the spec and the result of an `evaluate` job.

import { z } from 'zod';
import { CONFIG_MAX } from '../../model/config.ts';
import { QUANTIZATIONS, type Quantization } from '../../model/programs/quantize.ts';
import { dataFile, integer, LIMITS, modelReference, TOKENIZERS } from './fields.ts';

export const evaluateSpec = z.strictObject({
  model: modelReference,
  data: z.array(dataFile).min(1).max(LIMITS.dataFilesMax),
  tokenizer: z.enum([...TOKENIZERS, 'none']).optional(),
  contextLength: integer(1, CONFIG_MAX.context_length).optional(),
  /**
   * The number of tokens between the starts of windows, at most the context. A smaller one gives every token more context, and
   * costs more.
   */
  stride: integer(1, CONFIG_MAX.context_length).optional(),
  batchSize: integer(1, LIMITS.batchSizeMax).default(8),
  /** Evaluates only this many batches, from the first one on. */
  maxBatches: integer(1, 1e9).optional(),
  /** Also evaluates the weights as they are served with this quantization. */
  quantize: z.enum(QUANTIZATIONS).optional(),
});

/** Says how well a text is predicted. `loss` is a mean over tokens, in nats. */
export interface Evaluation {
  readonly loss: number;
  readonly perplexity: number;
  /** This is null for files of token ids. */
  readonly bitsPerByte: number | null;
}

/** Holds the evaluation of the float32 weights, and under `quantized` that of the quantized ones. */
export interface EvaluateResult extends Evaluation {
  readonly model: string;
  readonly step: number;
  readonly digest: string;
  /** The number of tokens that were predicted: every token but the first, once. */
  readonly tokens: number;
  readonly windows: number;
  readonly contextLength: number;
  readonly stride: number;
  /** Is set when the spec has `quantize`. `ratio` is its perplexity divided by that of the float32 weights. */
  readonly quantized?: Evaluation & { readonly quantize: Quantization; readonly ratio: number };
}
