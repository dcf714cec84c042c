// This file defines the specs and results of `params` and `create`, and the records of models and checkpoints.

import { z } from 'zod';
import { CONFIG_MAX, PRESET_NAMES, type GptConfig, type PresetName } from '../../model/config.ts';
import type { ParameterCount } from '../../model/count.ts';
import { integer, modelName, seed, TOKENIZERS, type ModelTokenizerName } from './fields.ts';

export {
  CONFIG_MAX,
  DEFAULT_PRESET,
  PRESET_NAMES,
  PRESETS,
  resolveConfig,
  type GptConfig,
} from '../../model/config.ts';

const configField = (name: keyof typeof CONFIG_MAX): z.ZodOptional<z.ZodNumber> =>
  integer(1, CONFIG_MAX[name]).optional();

/** A configuration is a preset's name, or fields that replace those of GPT_CONFIG_124M. */
const config = z.union([
  z.enum(PRESET_NAMES as readonly [PresetName, ...PresetName[]]),
  z.strictObject({
    vocab_size: configField('vocab_size'),
    context_length: configField('context_length'),
    emb_dim: configField('emb_dim'),
    n_heads: configField('n_heads'),
    n_layers: configField('n_layers'),
    drop_rate: z.number().min(0).lt(1).optional(),
    qkv_bias: z.boolean().optional(),
    tie_weights: z.boolean().optional(),
  }),
]);

export const paramsSpec = z.strictObject({ config: config.default('GPT_CONFIG_124M') });

export const createSpec = z.strictObject({
  model: modelName,
  config: config.default('GPT_CONFIG_124M'),
  seed,
  init: z.enum(['torch', 'gpt2']).default('torch'),
  tokenizer: z.enum(TOKENIZERS).optional(),
});

/** Holds exact counts of parameters, bytes under `memory`, and under `plan` the stages that the daemon's workers would get. */
export interface ParamsResult extends ParameterCount {
  readonly config: GptConfig;
  readonly memory: {
    readonly weightsBytes: number;
    readonly optimizerBytes: number;
    readonly servingBytes: number;
    readonly trainingBytes: number;
  };
  readonly plan: readonly PlanStage[];
}

/** A contiguous range of blocks [firstBlock, endBlock) on one worker thread. */
export interface PlanStage {
  readonly worker: number;
  readonly firstBlock: number;
  readonly endBlock: number;
  readonly embeds: boolean;
  readonly head: boolean;
  readonly params: number;
}

export interface ModelRecord {
  readonly name: string;
  readonly config: GptConfig;
  readonly parameters: number;
  readonly tokenizer: ModelTokenizerName | null;
  /** The step and the digest of the checkpoint that the request names, by default the newest one. */
  readonly step: number;
  readonly digest: string;
  readonly createdAt: number;
}

export interface CheckpointRecord {
  readonly model: string;
  readonly step: number;
  readonly digest: string;
  readonly bytes: number;
  readonly optimizer: boolean;
  readonly loss: number | null;
  readonly valLoss: number | null;
  readonly createdAt: number;
}

/** The result of a `create` or an `import` job. */
export interface CreateResult {
  readonly model: string;
  readonly step: number;
  readonly digest: string;
  readonly parameters: number;
}
