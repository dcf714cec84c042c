// What people read: numbers, tables, the progress line within its width.

import { describe, expect, it } from 'vitest';
import {
  formatBar,
  formatBytes,
  formatDuration,
  formatEval,
  formatJobs,
  formatParams,
  formatPhaseLine,
  formatTable,
  formatTrained,
  formatTrainLine,
} from '../../../src/cli/render/records.ts';
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

const STEP = {
  step: 250,
  steps: 1000,
  loss: 2.34567,
  lr: 4e-4,
  gradNorm: 1,
  tokens: 1e6,
  tokensPerSecond: 12345.6,
  etaMs: 83_000,
};

describe('numbers', () => {
  it('are short and exact enough', () => {
    expect([512, 2048, 652_038_144, 5 * 2 ** 30].map(formatBytes)).toEqual([
      '512 bytes',
      '2.0 KB',
      '621.8 MB',
      '5.00 GB',
    ]);
    expect([400, 45_000, 83_000, 7_500_000, 273_600_000, Infinity].map(formatDuration)).toEqual([
      '0s',
      '45s',
      '1m 23s',
      '2h 05m',
      '3d 4h',
      '?',
    ]);
  });
});

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

describe('tables', () => {
  it('align numbers right and words left, without trailing blanks', () => {
    expect(
      formatTable(
        ['NAME', 'STEP'],
        [
          ['a', '1,000'],
          ['longer', '5'],
        ],
      ),
    ).toBe('NAME     STEP\na       1,000\nlonger      5');
  });

  it('show jobs with the model they are about', () => {
    const job = {
      jobId: 'j1',
      kind: 'train',
      state: 'succeeded',
      priority: -5,
      lastSeq: 3,
      result: null,
      error: null,
    } as const;
    const text = formatJobs([{ ...job, spec: { model: 'tiny' }, createdAt: 0, startedAt: 1000, endedAt: 84_000 }]);
    expect(text.split('\n')[1]).toMatch(/^j1 +train +tiny +succeeded +-5 +1970-01-01 00:00:00 +1m 23s$/);
    expect(formatJobs([])).toBe('There are no such jobs.');
  });
});

describe('the training line', () => {
  const text = 'step 250/1,000  loss 2.3457  val 2.5000  norm 1.00  lr 4.00e-4  12,346 tokens/s  1m 23s left';

  it('is plain elsewhere than on a terminal', () => {
    expect(formatTrainLine(STEP, { valLoss: 2.5, columns: Infinity, live: false })).toBe(text);
    expect(formatTrainLine(STEP, { valLoss: null, columns: Infinity, live: false })).not.toContain('val');
  });

  it('has a bar as wide as the terminal allows, and none when it is narrow', () => {
    expect(formatTrainLine(STEP, { valLoss: 2.5, columns: 200, live: true })).toBe(
      `[########----------------------] ${text}`,
    );
    expect(formatTrainLine(STEP, { valLoss: 2.5, columns: 110, live: true }).length).toBe(110);
    expect(formatTrainLine(STEP, { valLoss: 2.5, columns: 95, live: true })).toBe(text);
  });

  it('keeps bars within their ends', () => {
    expect([-1, 0, 0.5, 1, 2].map((fraction) => formatBar(fraction, 4))).toEqual([
      '[----]',
      '[----]',
      '[##--]',
      '[####]',
      '[####]',
    ]);
  });
});

describe('other lines', () => {
  it('tell phases, evaluations and the end of a training', () => {
    const phase = { phase: 'tokenizing', done: 1 << 20, total: 4 << 20, unit: 'bytes' };
    expect(formatPhaseLine(phase, { columns: Infinity, live: false })).toBe('tokenizing: 25% (1.0 MB of 4.0 MB)');
    expect(formatEval({ step: 100, trainLoss: 2, valLoss: 3, perplexity: 20.0855 })).toBe(
      'eval at step 100: training loss 2.0000, validation loss 3.0000 (perplexity 20.09)',
    );
    expect(formatEval({ step: 100, trainLoss: 2, valLoss: null, perplexity: null })).toBe(
      'eval at step 100: training loss 2.0000',
    );
    const dataset = {
      tokens: 9,
      charactersPerToken: null,
      bytesPerToken: null,
      trainWindows: 1,
      validationWindows: 0,
      duplicateWindows: 0,
    };
    const trained = { model: 'm', step: 9, digest: 'sha256:ab', loss: 1, valLoss: null, tokens: 1234 };
    const result = { ...trained, reason: 'steps', best: null, chain: null, dataset } as const;
    expect(formatTrained(result)).toBe('m: step 9, loss 1.0000, 1,234 tokens, digest sha256:ab');
    expect(formatTrained({ ...result, reason: 'patience', best: { step: 6, valLoss: 2.5 } })).toBe(
      'm: step 9, loss 1.0000, 1,234 tokens, digest sha256:ab\n' +
        'stopped early: the validation loss was lowest at step 6 (2.5000), which is m@best',
    );
  });
});
