// Checks what the command line shows of a `params` job.

import { describe, expect, it } from 'vitest';
import { formatParams } from '../../../src/cli/kinds/params.ts';
import { PRESETS, type ParamsResult } from '../../../src/daemon/protocol/models.ts';

const SMALL: ParamsResult = {
  config: PRESETS.GPT_CONFIG_124M,
  token_embeddings: 38_597_376,
  position_embeddings: 786_432,
  embedding_total: 39_383_808,
  mha_per_block: 2_360_064,
  ff_per_block: 4_722_432,
  layernorm_per_block: 3_072,
  params_per_block: 7_085_568,
  transformer_blocks_total: 85_026_816,
  final_layernorm: 1_536,
  output_projection: 38_597_376,
  total_params: 163_009_536,
  memory: {
    weightsBytes: 652_038_144,
    optimizerBytes: 1_304_076_288,
    servingBytes: 2 ** 30,
    trainingBytes: 4 * 2 ** 30,
  },
  plan: [
    { worker: 0, firstBlock: 0, endBlock: 8, embeds: true, head: false, params: 96_068_352 },
    { worker: 1, firstBlock: 8, endBlock: 12, embeds: false, head: true, params: 66_941_184 },
  ],
};

describe('the parameter table', () => {
  it('aligns counts and shows every row, the memory and the plan', () => {
    const lines = formatParams(SMALL).split('\n');
    expect(lines[0]).toBe('GPT: vocab 50,257, context 1,024, width 768, 12 heads, 12 blocks, dropout 0.1');
    expect(lines).toContain('token embeddings           38,597,376');
    expect(lines).toContain('final layernorm                 1,536');
    expect(lines).toContain('total params              163,009,536');
    expect(lines).toContain('weights          621.8 MB');
    expect(lines).toContain('training          4.00 GB');
    expect(lines).toContain('worker 0: embedding, blocks 0 to 7 (96,068,352 parameters)');
    expect(lines).toContain('worker 1: blocks 8 to 11, head (66,941,184 parameters)');
  });
});
