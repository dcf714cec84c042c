// Checks how the flags of a model's shape become a configuration, and the specs of the jobs that take a configuration.

import { describe, expect, it } from 'vitest';
import { configOf } from '../../../../src/cli/commands/models/config-flags.ts';
import { createSpecOf } from '../../../../src/cli/commands/models/create.ts';
import { paramsSpecOf } from '../../../../src/cli/commands/models/params.ts';
import { PRESETS } from '../../../../src/daemon/protocol/models.ts';

describe('a configuration', () => {
  it('is the 124M preset without flags', () => {
    expect(configOf({})).toEqual(PRESETS.GPT_CONFIG_124M);
  });

  it('takes a field from its flag rather than from the preset', () => {
    expect(configOf({ config: 'gpt2-medium', contextLength: 256, dropRate: 0, tieWeights: false })).toEqual({
      ...PRESETS['gpt2-medium'],
      context_length: 256,
      drop_rate: 0,
      tie_weights: false,
    });
  });

  it('names the flags of an impossible one', () => {
    expect(() => configOf({ embDim: 100, nHeads: 12 })).toThrow(
      '--emb-dim 100 cannot be divided among 12 heads: --emb-dim must be a multiple of --n-heads.',
    );
    expect(() => configOf({ dropRate: 1 })).toThrow('--drop-rate is 1: it must be at least 0 and below 1.');
  });

  it('is the whole spec of params', () => {
    expect(paramsSpecOf({ config: 'gpt2' })).toEqual({ config: PRESETS.gpt2 });
  });
});

describe('the spec of create', () => {
  it('carries the flags that were given and nothing of the connection', () => {
    const spec = createSpecOf('tiny', {
      vocabSize: 256,
      seed: 7,
      init: 'gpt2',
      tokenizer: 'byte',
      json: true,
      url: 'http://h:1',
    });
    expect(spec).toEqual({
      model: 'tiny',
      config: { ...PRESETS.GPT_CONFIG_124M, vocab_size: 256 },
      seed: 7,
      init: 'gpt2',
      tokenizer: 'byte',
    });
  });

  it('refuses names by their argument', () => {
    expect(() => createSpecOf('a/b', {})).toThrow('NAME is "a/b": a model name is');
  });
});
