// This computes the loss of a text under a loaded model. The programs that serve it, quantized weights and all, read each window
// like a prompt and give the loss of every next token. So an evaluation judges exactly what `generate` samples from.

import { PREFILL_ROWS } from '../serving/batcher.ts';
import type { EvaluationWindow } from './windows.ts';
import { serveRows, type LoadedModel } from '../serving/rows.ts';
import { PRIORITY } from '../threads/worker-thread.ts';

/**
 * The number of rows in one step, as of a prompt beside other sequences. Streams that wait for a token get their turn between two
 * steps, and need not wait for the end of a window.
 */
const ROWS_A_STEP = PREFILL_ROWS.shared;

interface WindowsOfText {
  /** The name that the sequences have on the stages, before their starts. */
  readonly name: string;
  /** The token ids of the whole text. */
  readonly tokens: Uint16Array | Uint32Array;
  readonly contextLength: number;
}

/**
 * Resolves to a sum for each window: the losses of its rows from `firstRow` on, in double precision. A stage works on one window
 * at a time.
 */
export async function servedLossSums(
  model: LoadedModel,
  windows: readonly EvaluationWindow[],
  text: WindowsOfText,
): Promise<number[]> {
  const sums: number[] = [];
  while (sums.length < windows.length) {
    const some = windows.slice(sums.length, sums.length + model.stages.length);
    sums.push(...(await Promise.all(some.map((window) => windowLoss(model, { window, ...text })))));
  }
  return sums;
}

async function windowLoss(
  model: LoadedModel,
  { window, name, tokens, contextLength: T }: WindowsOfText & { readonly window: EvaluationWindow },
): Promise<number> {
  const { start, firstRow } = window;
  const sequence = `${name}:${start}`;
  let sum = 0;
  try {
    for (let position = 0; position < T; position += ROWS_A_STEP) {
      const end = Math.min(T, position + ROWS_A_STEP);
      const ids = Array.from(tokens.subarray(start + position, start + end));
      const targets = Array.from(tokens.subarray(start + Math.max(position, firstRow) + 1, start + end + 1));
      const shares = [{ sequence, position, rowCount: ids.length, fork: null, sample: null }];
      const { losses } = await serveRows(model, { ids, shares, targets, priority: PRIORITY.forward });
      sum = losses!.reduce((total, loss) => total + loss, sum);
    }
    return sum;
  } finally {
    const ended = { lease: model.lease, sequences: [sequence], keepCaches: false };
    // A thread that has died has taken the cache with it.
    await Promise.allSettled(model.stages.map(({ thread }) => thread.call('serveEnd', ended)));
  }
}
