// Checks how the flags of a command that reads data files become the spec of its job.

import { describe, expect, it } from 'vitest';
import { dataSpecOf } from '../../../../src/cli/commands/jobs/data-jobs.ts';
import { JOB_SPECS } from '../../../../src/daemon/protocol/kinds.ts';

const DIGEST = 'ab'.repeat(32);

describe('specs', () => {
  it('name the data of train by digest and format, in order', () => {
    const flags = {
      data: ['a.txt', 'b.jsonl', 'c.bin', 'd'],
      shuffle: false,
      valSplit: 0,
      minLr: 1e-5,
      token: 'secret',
    };
    const spec = dataSpecOf('train', { model: 'tiny', flags, digests: Array<string>(4).fill(DIGEST) });
    expect(spec).toEqual({
      model: 'tiny',
      shuffle: false,
      valSplit: 0,
      minLr: 1e-5,
      data: ['text', 'jsonl', 'tokens', 'text'].map((format) => ({ digest: DIGEST, format })),
    });
    expect(JOB_SPECS.train.parse(spec)).toMatchObject({ batchSize: 4, lr: 4e-4, shuffle: false, valSplit: 0 });
  });

  it('read every file as token ids under --tokenizer none', () => {
    const flags = { data: ['a.txt'], shuffle: true, tokenizer: 'none' };
    expect(dataSpecOf('train', { model: 'tiny', flags, digests: [DIGEST] })).toMatchObject({
      data: [{ digest: DIGEST, format: 'tokens' }],
    });
  });

  it.each([
    [{ batchSize: 0 }, '--batch-size is 0: it must be at least 1.'],
    [{ batchSize: 1.5 }, '--batch-size is 1.5: it must be an integer.'],
    [{ valSplit: 1 }, '--val-split is 1: it must be below 1.'],
    [{ warmupSteps: -1 }, '--warmup-steps is -1: it must be at least 0.'],
    [{ eps: 0 }, '--eps is 0: it must be above 0.'],
    [{ beta2: 2 }, '--beta2 is 2: it must be below 1.'],
  ])('refuse %j by its flag', (fields, sentence) => {
    const flags = { data: ['a.txt'], shuffle: true, ...fields };
    expect(() => dataSpecOf('train', { model: 'tiny', flags, digests: [DIGEST] })).toThrow(sentence);
  });
});
