// Checks how the flags of `generate` become the spec of its job.

import { describe, expect, it } from 'vitest';
import { generateSpecOf } from '../../../../src/cli/commands/jobs/generate.ts';

describe('specs', () => {
  it('need exactly one prompt', () => {
    expect(generateSpecOf('tiny@best', { prompt: '', maxTokens: 3, stop: ['\n'] })).toEqual({
      model: 'tiny@best',
      prompt: '',
      maxTokens: 3,
      stop: ['\n'],
    });
    expect(() => generateSpecOf('tiny', {})).toThrow('Give either --prompt TEXT or --prompt-ids 1,2,3.');
    expect(() => generateSpecOf('tiny', { prompt: 'a', promptIds: [1] })).toThrow('Give either');
  });
});
