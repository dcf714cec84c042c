// Checks how the spec of a training is read from what clients write.

import { describe, expect, test } from 'vitest';
import { trainSpec } from '../../../src/daemon/protocol/training.ts';

const LEAST = { model: 'm', data: [`sha256:${'0'.repeat(64)}`] };

describe('the order of windows', () => {
  test.each([
    ['nothing', {}, true],
    ['shuffle: false', { shuffle: false }, false],
    ['noShuffle: true', { noShuffle: true }, false],
    ['noShuffle: false', { noShuffle: false }, true],
    ['both', { shuffle: true, noShuffle: true }, false],
  ])('%s', (_what, order, shuffle) => {
    const spec = trainSpec.parse({ ...LEAST, ...order });
    expect(spec.shuffle).toBe(shuffle);
    expect(spec).not.toHaveProperty('noShuffle');
  });
});

test('a spec that was parsed stays the same when it is parsed again', () => {
  const spec = trainSpec.parse({ ...LEAST, noShuffle: true, steps: 3 });
  expect(trainSpec.parse(spec)).toEqual(spec);
});

test('an unknown field is refused by name', () => {
  expect(trainSpec.safeParse({ ...LEAST, noshuffle: true }).error?.issues).toEqual([
    expect.objectContaining({ code: 'unrecognized_keys', keys: ['noshuffle'] }),
  ]);
});
