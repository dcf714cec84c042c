// The `params` job: what a configuration has and takes, without allocating any of it.

import { resolveConfig, type GptConfig } from '../../model/config.ts';
import { countParameters } from '../../model/count.ts';
import type { Kind } from '../jobs/kind.ts';
import { paramsSpec, type ParamsResult } from '../protocol/models.ts';
import { optimizerBytes, servingBytes, trainingBytes, weightsBytes } from '../threads/memory.ts';
import { planStages } from '../threads/plan.ts';

export const paramsKind: Kind<'params'> = {
  name: 'params',
  spec: paramsSpec,
  lane: 'answer',
  atOnce: 4,
  needs: () => Promise.resolve(null),
  check: ({ spec, services }) => {
    // What cannot be planned is refused.
    describeParameters(resolveConfig(spec.config), services.stages.length);
    return Promise.resolve();
  },
  run: ({ spec, services }) => Promise.resolve(describeParameters(resolveConfig(spec.config), services.stages.length)),
};

/** Exact counts, bytes and the plan of a configuration; nothing is allocated. */
function describeParameters(config: GptConfig, workers: number): ParamsResult {
  const plan = planStages(config, workers);
  const shape = { batchSize: 4, microBatchSize: 1, contextLength: config.context_length, stageCount: plan.length };
  return {
    config,
    ...countParameters(config),
    memory: {
      weightsBytes: weightsBytes(config),
      optimizerBytes: optimizerBytes(config),
      servingBytes: servingBytes(config),
      trainingBytes: trainingBytes(config, shape),
    },
    plan,
  };
}
