// Checks what the command line shows of a `train` job: the progress line within its width, evaluations, and the end.

import { describe, expect, it } from 'vitest';
import { formatEval, formatTrained, formatTrainLine } from '../../../src/cli/kinds/train.ts';

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

describe('the training line', () => {
  const text = 'step 250/1,000  loss 2.3457  val 2.5000  norm 1.00  lr 4.00e-4  12,346 tokens/s  1m 23s left';

  it('is plain where there is no terminal', () => {
    expect(formatTrainLine(STEP, { valLoss: 2.5, columns: Infinity, live: false })).toBe(text);
    expect(formatTrainLine(STEP, { valLoss: null, columns: Infinity, live: false })).not.toContain('val');
  });

  it('has a bar as wide as the terminal allows, and none when the terminal is narrow', () => {
    expect(formatTrainLine(STEP, { valLoss: 2.5, columns: 200, live: true })).toBe(
      `[########----------------------] ${text}`,
    );
    expect(formatTrainLine(STEP, { valLoss: 2.5, columns: 110, live: true }).length).toBe(110);
    expect(formatTrainLine(STEP, { valLoss: 2.5, columns: 95, live: true })).toBe(text);
  });
});

describe('other lines', () => {
  it('show evaluations and the end of a training', () => {
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
