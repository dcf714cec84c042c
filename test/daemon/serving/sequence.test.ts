// Checks what a sequence takes of a step that has guessed beyond the sequence's end. There is no stage.

import { expect, test } from 'vitest';
import { Sequence, type Generation } from '../../../src/daemon/serving/sequence.ts';
import { generateSpec } from '../../../src/daemon/protocol/generation.ts';

test('tokens behind a stop string in the same step are dropped, and neither told, counted nor kept as computed', async () => {
  const never = new AbortController().signal;
  const told: number[] = [];
  let sequence!: Sequence;
  const generation = new Promise<Generation>((resolve, reject) => {
    const request = {
      sequence: 's',
      spec: generateSpec.parse({ model: 'm', promptIds: [1, 2, 3], maxTokens: 50 }),
      prompt: [1, 2, 3],
      sample: 0,
      continued: [],
      isStopped: false,
      cancelled: never,
      halted: never,
      onToken: ({ id }: { readonly id: number }) => {
        told.push(id);
        return id === 6;
      },
      onWait: () => undefined,
    };
    sequence = new Sequence({ request, context: 64, resolve, reject });
  });
  expect(sequence.next({ prefillRows: 64, guessMax: 0 })?.begin?.prompt).toEqual([1, 2, 3]);
  const logprob = -1;
  expect(sequence.settle({ count: 3, sampled: { tokens: [{ id: 4, logprob }], drafted: 0, draft: [5, 6, 7] } })).toBe(
    false,
  );
  expect(sequence.next({ prefillRows: 0, guessMax: 3 })).toMatchObject({ rows: [4, 5, 6, 7], begin: null });
  const tokens = [5, 6, 7, 8].map((id) => ({ id, logprob }));
  expect(sequence.settle({ count: 1, sampled: { tokens, drafted: 3, draft: [9] } })).toBe(true);
  expect(told).toEqual([4, 5, 6]);
  expect(await generation).toMatchObject({ ids: [4, 5, 6], reason: 'stop', drafted: 3, accepted: 1 });
  expect([sequence.window, sequence.position]).toEqual([[1, 2, 3, 4, 5, 6], 5]);
});
