// The model's configuration under the names of "LLMs from scratch", the presets, and the checks that every
// configuration must pass before anything is counted or allocated. Training and serving options are elsewhere.

import { GptdError } from './errors.ts';

/** The shape of a GPT. All counts are positive integers; `drop_rate` is a probability below 1. */
export interface GptConfig {
  readonly vocab_size: number;
  readonly context_length: number;
  readonly emb_dim: number;
  readonly n_heads: number;
  readonly n_layers: number;
  readonly drop_rate: number;
  readonly qkv_bias: boolean;
  /** Whether the output projection is the token embedding, as in GPT-2 itself, instead of a matrix of its own. */
  readonly tie_weights: boolean;
}

const book = (emb_dim: number, n_heads: number, n_layers: number): GptConfig => ({
  vocab_size: 50257,
  context_length: 1024,
  emb_dim,
  n_heads,
  n_layers,
  drop_rate: 0.1,
  qkv_bias: false,
  tie_weights: false,
});
const openai = (emb_dim: number, n_heads: number, n_layers: number): GptConfig => ({
  ...book(emb_dim, n_heads, n_layers),
  qkv_bias: true,
  tie_weights: true,
});

export const PRESETS = {
  GPT_CONFIG_124M: book(768, 12, 12),
  GPT_CONFIG_355M: book(1024, 16, 24),
  GPT_CONFIG_774M: book(1280, 20, 36),
  GPT_CONFIG_1558M: book(1600, 25, 48),
  gpt2: openai(768, 12, 12),
  'gpt2-medium': openai(1024, 16, 24),
  'gpt2-large': openai(1280, 20, 36),
  'gpt2-xl': openai(1600, 25, 48),
} as const satisfies Record<string, GptConfig>;

export type PresetName = keyof typeof PRESETS;
export const PRESET_NAMES = Object.keys(PRESETS) as readonly PresetName[];
export const DEFAULT_PRESET: PresetName = 'GPT_CONFIG_124M';

/** The upper bounds are far above what a CPU can hold. They keep every product below 2^53 and exact. */
export const CONFIG_MAX = {
  vocab_size: 2 ** 24,
  context_length: 2 ** 20,
  emb_dim: 2 ** 16,
  n_heads: 2 ** 10,
  n_layers: 2 ** 10,
} as const;

/** Some of the fields of a configuration. An undefined field counts as absent. */
export type ConfigFields = { readonly [K in keyof GptConfig]?: GptConfig[K] | undefined };

/** Returns the configuration, or throws `invalid_spec` with one sentence about the first impossible field. */
export function checkConfig(config: GptConfig): GptConfig {
  for (const name of ['vocab_size', 'context_length', 'emb_dim', 'n_heads', 'n_layers'] as const) {
    const value = config[name];
    if (!Number.isInteger(value) || value < 1 || value > CONFIG_MAX[name]) {
      throw new GptdError(
        'invalid_spec',
        `${name} is ${String(value)}: it must be an integer between 1 and ${CONFIG_MAX[name]}.`,
      );
    }
  }
  if (typeof config.drop_rate !== 'number' || !(config.drop_rate >= 0 && config.drop_rate < 1)) {
    throw new GptdError('invalid_spec', `drop_rate is ${String(config.drop_rate)}: it must be at least 0 and below 1.`);
  }
  for (const name of ['qkv_bias', 'tie_weights'] as const) {
    if (typeof config[name] !== 'boolean') {
      throw new GptdError('invalid_spec', `${name} is ${String(config[name])}: it must be true or false.`);
    }
  }
  if (config.emb_dim % config.n_heads !== 0) {
    throw new GptdError(
      'invalid_spec',
      `emb_dim ${config.emb_dim} cannot be divided among ${config.n_heads} heads: emb_dim must be a multiple of n_heads.`,
    );
  }
  return config;
}

/**
 * Returns the configuration of `source`, which is a preset's name or fields that replace those of `GPT_CONFIG_124M`, with
 * `overrides`. Throws `invalid_spec` for an unknown preset or an impossible configuration.
 */
export function resolveConfig(source: string | ConfigFields, overrides: ConfigFields = {}): GptConfig {
  if (typeof source === 'string') {
    if (!Object.hasOwn(PRESETS, source)) {
      throw new GptdError(
        'invalid_spec',
        `There is no preset "${source}": it must be one of ${PRESET_NAMES.join(', ')}.`,
      );
    }
    return checkConfig({ ...PRESETS[source as PresetName], ...given(overrides) });
  }
  return checkConfig({ ...PRESETS[DEFAULT_PRESET], ...given(source), ...given(overrides) });
}

const given = (fields: ConfigFields): Partial<GptConfig> =>
  Object.fromEntries(Object.entries(fields).filter(([, value]) => value !== undefined));

/** Throws `invalid_spec` for a token id that the model does not have. `what` says in the message where the id was found. */
export function checkTokenIds(
  ids: readonly number[],
  { config: { vocab_size: V }, what }: { readonly config: GptConfig; readonly what: string },
): void {
  const bad = ids.find((id) => id >= V);
  if (bad !== undefined) {
    throw new GptdError('invalid_spec', `${what} has token ${bad}: the model's ids go from 0 to ${V - 1}.`);
  }
}
