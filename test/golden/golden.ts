// Reads PyTorch's reference runs, with which tests compare; the README beside this file says how they were made.

import { readFileSync } from 'node:fs';
import type { GptConfig } from '../../src/model/config.ts';

export interface Golden {
  readonly config: GptConfig;
  readonly seed: number;
  readonly optimizer: {
    readonly lr: number;
    readonly beta1: number;
    readonly beta2: number;
    readonly eps: number;
    readonly weight_decay: number;
    readonly decay: 'all' | 'matrices';
    readonly grad_clip: number;
  };
  /** Holds the T + 1 ids of each sequence: `tokens[step][row]`. */
  readonly tokens: readonly (readonly (readonly number[])[])[];
  readonly loss: readonly number[];
  readonly gradNorm: readonly number[];
  readonly gradients: Readonly<Record<string, { readonly first: readonly number[]; readonly l2: number }>>;
  readonly weights: Readonly<Record<string, { readonly first: readonly number[]; readonly l2: number }>>;
  readonly greedy: { readonly prompt: readonly number[]; readonly tokens: readonly number[] };
}

export const GOLDEN_NAMES = ['untied-decay-all', 'untied-bias-clip', 'tied-gpt2'] as const;
export type GoldenName = (typeof GOLDEN_NAMES)[number];

export function golden(name: GoldenName): Golden {
  return JSON.parse(readFileSync(new URL(`./${name}.json`, import.meta.url), 'utf8')) as Golden;
}

/** Returns the run's token ids as `--tokenizer none` reads them. */
export const flatTokens = ({ tokens }: Golden): Uint16Array => Uint16Array.from(tokens.flat(2));

export const relative = (value: number, reference: number): number => Math.abs(value / reference - 1);

export const l2 = (values: Float32Array): number => Math.sqrt(values.reduce((sum, value) => sum + value * value, 0));
