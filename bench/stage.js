// Makes one training stage with the whole model, for benchmarks of what a stage runs. There is no daemon and no pipeline.

import { updateUnits } from '../dist/workers/training/messages.js';
import { sumOfSquares } from '../dist/workers/training/parameters.js';
import { TrainStage } from '../dist/workers/training/stage.js';

/**
 * Returns a stage whose weights begin as `tensors`, by name. `step(n)` makes one update over `batchSize` sequences, micro-batch
 * by micro-batch, and resolves to the milliseconds that the gradient's norm and AdamW take.
 */
export function trainingStage(engine, { config, tensors, batchSize, microBatchSize, contextLength: T }) {
  const tokens = new SharedArrayBuffer(2 * batchSize * (T + 1));
  new Uint16Array(tokens).forEach((_, i, ids) => (ids[i] = (i * 31) % config.vocab_size));
  const range = { firstBlock: 0, endBlock: config.n_layers, embeds: true, head: true };
  const setup = { config, stage: range, batchSize, microBatchSize, contextLength: T, seed: 1 };
  const stage = new TrainStage(
    engine,
    { ...setup, tokens, wideTokens: false, optimizerState: false },
    ({ name }, _, into) => into.set(tensors.get(name)),
  );
  const adamw = { lr: 1e-4, weightDecay: 0.1, gradScale: 1, beta1: 0.9, beta2: 0.95, eps: 1e-8 };
  const micros = Array.from({ length: batchSize / microBatchSize }, (_, index) => {
    const firstSequence = index * microBatchSize;
    const starts = Array.from({ length: microBatchSize }, (_, row) => (firstSequence + row) * (T + 1));
    return { index, firstSequence, starts };
  });
  return {
    step: async (step) => {
      for (const at of micros) {
        const micro = { ...at, step };
        await stage.forward(micro, stage.embed(micro, { train: true }));
        const dx = await stage.backward(micro, null);
        await stage.allWeightGradients(micro);
        stage.embedBackward(micro, dx);
      }
      stage.finish();
      // The stage makes each sum of squares when its gradient is complete. They are made once more here, so that they can be
      // timed.
      const begin = performance.now();
      for (const name of stage.parameters.keys()) sumOfSquares(stage.gradient(name));
      const update = { step: { step, ...adamw }, decayAll: false };
      for (const unit of updateUnits(range)) stage.optimizer.update(update, unit);
      return { optimizerMs: performance.now() - begin };
    },
    close: () => stage.close(),
  };
}
