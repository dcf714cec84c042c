// The self-test's part of the thread contract: checks of the model's arithmetic on the engine that was asked for.

export interface SelftestCalls {
  /** Attention weights of random rows: how far their sums are from one, and how much a row changes with what lies ahead of it. */
  attention: [
    Record<string, never>,
    { readonly sumError: number; readonly weightAhead: number; readonly leak: number },
  ];
  /** Every tensor's gradient against finite differences along it: the largest relative difference, and where. */
  gradients: [Record<string, never>, { readonly error: number; readonly tensor: string; readonly count: number }];
}

export type SelftestRequest = {
  readonly [K in keyof SelftestCalls]: { readonly type: K } & SelftestCalls[K][0];
}[keyof SelftestCalls];
