// This file defines the spec and the result of a `train` job, and its report on the data.

import { z } from 'zod';
import { CONFIG_MAX } from '../../model/config.ts';
import { SCHEDULES } from '../../model/schedule.ts';
import { dataFile, integer, LIMITS, modelReference, seed, TOKENIZERS } from './fields.ts';

export { SCHEDULES, type ScheduleName } from '../../model/schedule.ts';

export const trainSpec = z
  .strictObject({
    /** NAME@STEP or NAME@best trains on from that checkpoint. */
    model: modelReference,
    data: z.array(dataFile).min(1).max(LIMITS.dataFilesMax),
    tokenizer: z.enum([...TOKENIZERS, 'none']).optional(),
    steps: integer(1, LIMITS.stepsMax).optional(),
    epochs: integer(1, 1e6).optional(),
    batchSize: integer(1, LIMITS.batchSizeMax).default(4),
    /**
     * The number of sequences per micro-batch, which divides batchSize. It shapes the sums, so it belongs to the spec and not to
     * the layout.
     */
    microBatchSize: integer(1, LIMITS.batchSizeMax).optional(),
    contextLength: integer(1, CONFIG_MAX.context_length).optional(),
    stride: integer(1, 2 ** 31).optional(),
    shuffle: z.boolean().default(true),
    /** The flag in camelCase, as clients write it: true is read as `shuffle: false`. */
    noShuffle: z.boolean().optional(),
    valSplit: z.number().min(0).lt(1).default(0.1),
    seed,
    lr: z.number().min(0).max(1e3).default(4e-4),
    minLr: z.number().min(0).max(1e3).default(0),
    warmupSteps: integer(0, LIMITS.stepsMax).default(0),
    schedule: z.enum(SCHEDULES).default('constant'),
    /** The number of steps of the decay that ends a `wsd` schedule; by default a fifth of the run. */
    decaySteps: integer(1, LIMITS.stepsMax).optional(),
    beta1: z.number().min(0).lt(1).default(0.9),
    beta2: z.number().min(0).lt(1).default(0.999),
    eps: z.number().gt(0).max(1).default(1e-8),
    weightDecay: z.number().min(0).max(100).default(0.1),
    decay: z.enum(['matrices', 'all']).default('matrices'),
    /** The largest global gradient norm; 0 turns clipping off. */
    gradClip: z.number().min(0).max(1e9).default(1),
    /** The number of steps between evaluations; 0 evaluates at the end only. */
    evalEvery: integer(0, LIMITS.stepsMax).default(0),
    evalBatches: integer(1, 1e6).default(5),
    /** The number of steps between samples of generated text; 0 generates none. */
    sampleEvery: integer(0, LIMITS.stepsMax).default(0),
    /** The text that samples continue; by default the first tokens of the data. */
    samplePrompt: z.string().min(1).max(LIMITS.promptCharactersMax).optional(),
    sampleTokens: integer(1, 4096).default(50),
    /** A temperature of 0 is greedy. */
    sampleTemperature: z.number().min(0).max(100).default(0),
    /** The number of evaluations without a lower validation loss after which training ends. */
    patience: integer(1, 1e6).optional(),
    /**
     * The number of steps between checkpoints, or a time like "60s". 0 writes one at the end only; by default one is written a
     * minute.
     */
    checkpointEvery: z
      .union([
        integer(0, LIMITS.stepsMax),
        z.string().regex(/^[1-9]\d{0,6}s$/, 'it is a number of steps, or of seconds as in "60s"'),
      ])
      .optional(),
    /** The number of this job's checkpoints that are kept. Older ones are deleted as new ones are committed. */
    keepLast: integer(1, 10000).default(2),
    /** Continues with the optimizer's state of the checkpoint that `model` names. */
    resume: z.boolean().default(false),
  })
  .transform(({ noShuffle, ...spec }) => ({ ...spec, shuffle: spec.shuffle && noShuffle !== true }));

export interface TrainResult {
  readonly model: string;
  readonly step: number;
  readonly digest: string;
  readonly loss: number;
  readonly valLoss: number | null;
  readonly tokens: number;
  /** Why the job ended: all steps were done, or `patience` evaluations brought no lower validation loss. */
  readonly reason: 'steps' | 'patience';
  /** The lowest validation loss and its step; null without evaluations. */
  readonly best: { readonly step: number; readonly valLoss: number } | null;
  /** The last link of the hash chain over the steps' losses and gradient norms; null where an older gptd began the job. */
  readonly chain: string | null;
  readonly dataset: DatasetReport;
}

/** Describes the data of a training. The values per token are null for files of token ids. */
export interface DatasetReport {
  readonly tokens: number;
  readonly charactersPerToken: number | null;
  readonly bytesPerToken: number | null;
  readonly trainWindows: number;
  readonly validationWindows: number;
  /** The number of validation windows that occur, at any position, in the training part too. */
  readonly duplicateWindows: number;
}
