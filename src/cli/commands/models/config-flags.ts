// The flags that describe a new model, which `params` and `create` share, and how they become a configuration: a preset with
// single fields replaced. `import` shares only the flag of the tokenizer. The presets and the checks are the model's own, reached
// through the wire contract.

import { Option, type Command } from 'commander';
import { TOKENIZERS } from '../../../daemon/protocol/fields.ts';
import { DEFAULT_PRESET, PRESET_NAMES, resolveConfig, type GptConfig } from '../../../daemon/protocol/models.ts';
import { GptdError } from '../../../daemon/protocol/errors.ts';
import { usageError } from '../../exit-codes.ts';
import { flagOf, parseNumber, without } from '../../flags.ts';

export interface ConfigFlags {
  readonly config?: string;
  readonly vocabSize?: number;
  readonly contextLength?: number;
  readonly embDim?: number;
  readonly nHeads?: number;
  readonly nLayers?: number;
  readonly dropRate?: number;
  readonly qkvBias?: boolean;
  readonly tieWeights?: boolean;
}

/** The flag of each field, in the order of the configuration. */
const FIELD_FLAGS = {
  vocab_size: 'vocabSize',
  context_length: 'contextLength',
  emb_dim: 'embDim',
  n_heads: 'nHeads',
  n_layers: 'nLayers',
  drop_rate: 'dropRate',
  qkv_bias: 'qkvBias',
  tie_weights: 'tieWeights',
} as const satisfies Record<keyof GptConfig, keyof ConfigFlags>;

const FIELDS = Object.keys(FIELD_FLAGS) as (keyof GptConfig)[];

export function addConfigFlags(command: Command): Command {
  return command
    .addOption(
      new Option('--config <preset>', `preset to start from (default: ${DEFAULT_PRESET})`).choices([...PRESET_NAMES]),
    )
    .option('--vocab-size <count>', 'tokens in the vocabulary', parseNumber)
    .option('--context-length <count>', 'longest sequence in tokens', parseNumber)
    .option('--emb-dim <count>', 'width of the embeddings', parseNumber)
    .option('--n-heads <count>', 'attention heads per block', parseNumber)
    .option('--n-layers <count>', 'transformer blocks', parseNumber)
    .option('--drop-rate <p>', 'dropout probability', parseNumber)
    .option('--qkv-bias', 'give queries, keys and values a bias')
    .option('--no-qkv-bias', 'no bias on queries, keys and values')
    .option('--tie-weights', 'use the token embedding as output projection')
    .option('--no-tie-weights', 'an output projection of its own');
}

export const tokenizerOption = (): Option =>
  new Option('--tokenizer <name>', "the model's tokenizer (default: by its vocabulary)").choices([...TOKENIZERS]);

/** Returns the whole configuration. Throws a usage error that names the flags when the configuration is impossible. */
export function configOf(flags: ConfigFlags): GptConfig {
  const overrides: Record<string, number | boolean> = {};
  for (const field of FIELDS) {
    const value = flags[FIELD_FLAGS[field]];
    if (value !== undefined) overrides[field] = value;
  }
  try {
    return resolveConfig(flags.config ?? DEFAULT_PRESET, overrides);
  } catch (error) {
    if (!(error instanceof GptdError)) throw error;
    throw usageError(error.message.replace(new RegExp(`\\b(${FIELDS.join('|')})\\b`, 'g'), flagOf));
  }
}

/** Returns the flags that `configOf` does not read. */
export function withoutConfigFlags<F extends ConfigFlags>(flags: F): Omit<F, keyof ConfigFlags> {
  return without(flags, ['config', ...Object.values(FIELD_FLAGS)]);
}
