// Which worker owns which blocks: contiguous ranges whose largest cost is as small as it can be, so that no stage of the
// pipeline waits long for another. Costs are multiply-adds a row; embeddings cost next to nothing.

import type { GptConfig } from '../../model/config.ts';
import { countMatrices } from '../../model/count.ts';
import { assert, GptdError } from '../../model/errors.ts';
import { ownsTensor, tensorTable } from '../../model/tensors.ts';
import type { PlanStage } from '../protocol/models.ts';

/** Stages in pipeline order, at most one a block and at most `workers`. */
export function planStages(config: GptConfig, workers: number): PlanStage[] {
  const stageCount = Math.min(workers, config.n_layers);
  if (!Number.isInteger(stageCount) || stageCount < 1) {
    throw new GptdError(
      'invalid_spec',
      `Cannot split ${config.n_layers} blocks among ${workers} workers: at least 1 is needed.`,
    );
  }
  const ends = balancedEnds(config, stageCount);
  const table = tensorTable(config);
  return ends.map((endBlock, worker) => {
    const firstBlock = worker === 0 ? 0 : ends[worker - 1];
    const head = worker === stageCount - 1;
    // A tied wte has one owner: the stage with the head, which therefore embeds too.
    const embeds = config.tie_weights ? head : worker === 0;
    const range = { firstBlock, endBlock, embeds, head };
    const params = table.reduce((sum, tensor) => sum + (ownsTensor(range, tensor) ? tensor.size : 0), 0);
    return { worker, ...range, params };
  });
}

/**
 * Where each stage's range ends. Every stage gets as many blocks as fit under the smallest possible largest cost, found by
 * trying the costs that a stage can have; what is left for the last stages is at least one block each.
 */
function balancedEnds(config: GptConfig, stageCount: number): number[] {
  const layers = config.n_layers;
  const { block, head } = countMatrices(config);
  const costs = Array.from({ length: layers }, (_, i) => [(i + 1) * block, (i + 1) * block + head]).flat();
  for (const limit of costs.sort((a, b) => a - b)) {
    const ends: number[] = [];
    for (let stage = 0; stage < stageCount; stage++) {
      const begin = ends.at(-1) ?? 0;
      const fitting = Math.floor(limit / block);
      const last = stage === stageCount - 1;
      ends.push(last ? layers : Math.min(begin + fitting, layers - (stageCount - 1 - stage)));
    }
    const lastBlocks = layers - (ends.at(-2) ?? 0);
    if (lastBlocks * block + head <= limit && ends.every((end, i) => end > (ends[i - 1] ?? 0))) return ends;
  }
  assert(false, `no split of ${layers} blocks into ${stageCount} stages`);
}
