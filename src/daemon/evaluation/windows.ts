// This file plans the windows of a text that an evaluation reads. Together they predict every token but the first, each exactly
// once. A window is T + 1 tokens. Where windows overlap, a later one counts only what the earlier ones have not.

import { GptdError } from '../../model/errors.ts';

/** The rows from `firstRow` on count: row r predicts token `start` + r + 1. */
export interface EvaluationWindow {
  readonly start: number;
  readonly firstRow: number;
}

export interface EvaluationWindows {
  /** This is T: the context, or one token less than the text where that is shorter. */
  readonly contextLength: number;
  readonly stride: number;
  readonly count: number;
  at(index: number): EvaluationWindow;
}

/** Throws `invalid_spec` for a text of fewer than two tokens, and for a stride that would leave tokens out. */
export function planEvaluation({
  tokenCount,
  contextLength,
  stride = contextLength,
}: {
  readonly tokenCount: number;
  readonly contextLength: number;
  readonly stride?: number | undefined;
}): EvaluationWindows {
  if (tokenCount < 2) {
    throw new GptdError('invalid_spec', `The data has ${tokenCount} tokens: at least 2 are needed to predict one.`);
  }
  if (stride > contextLength) {
    throw new GptdError(
      'invalid_spec',
      `stride is ${stride} and the context ${contextLength}: a longer stride would leave tokens out.`,
    );
  }
  const T = Math.min(contextLength, tokenCount - 1);
  const step = Math.min(stride, T);
  // The last window ends with the text, so it may begin less than a stride behind the one before.
  const lastStart = tokenCount - 1 - T;
  const count = Math.ceil(lastStart / step) + 1;
  return {
    contextLength: T,
    stride: step,
    count,
    at(index) {
      const start = Math.min(index * step, lastStart);
      if (index === 0) return { start, firstRow: 0 };
      const counted = (index - 1) * step + T;
      return { start, firstRow: counted - start };
    },
  };
}
