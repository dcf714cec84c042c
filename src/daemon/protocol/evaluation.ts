// Evaluation on the wire: the spec of an evaluating job and what it results in.

import { z } from 'zod';
import { CONFIG_MAX } from '../../model/config.ts';
import { QUANTIZATIONS, type Quantization } from '../../model/programs/quantize.ts';
import { dataFile, integer, LIMITS, modelReference, TOKENIZERS } from './fields.ts';

export const evaluateSpec = z.strictObject({
  model: modelReference,
  data: z.array(dataFile).min(1).max(LIMITS.dataFilesMax),
  tokenizer: z.enum([...TOKENIZERS, 'none']).optional(),
  contextLength: integer(1, CONFIG_MAX.context_length).optional(),
  /** Tokens between the starts of windows, at most the context: smaller gives every token more context, and costs more. */
  stride: integer(1, CONFIG_MAX.context_length).optional(),
  batchSize: integer(1, LIMITS.batchSizeMax).default(8),
  /** Evaluate only the first batches. */
  maxBatches: integer(1, 1e9).optional(),
  /** Evaluate the weights as they are served with this too. */
  quantize: z.enum(QUANTIZATIONS).optional(),
});

/** How well a text is predicted: `loss` is a mean, in nats. */
export interface Evaluation {
  readonly loss: number;
  readonly perplexity: number;
  /** null for files of token ids. */
  readonly bitsPerByte: number | null;
}

/** Of the float32 weights, and of the quantized ones beside them. */
export interface EvaluateResult extends Evaluation {
  readonly model: string;
  readonly step: number;
  readonly digest: string;
  /** Tokens that were predicted: each but the first once. */
  readonly tokens: number;
  readonly windows: number;
  readonly contextLength: number;
  readonly stride: number;
  /** With `quantize`; `ratio` is its perplexity divided by that of the float32 weights. */
  readonly quantized?: Evaluation & { readonly quantize: Quantization; readonly ratio: number };
}
