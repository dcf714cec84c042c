// The `params` job tells how many parameters a configuration has and how much memory it takes, without allocating any of it.

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
    // A configuration that cannot be planned is refused.
    describeParameters(resolveConfig(spec.config), services.stages.length);
    return Promise.resolve();
  },
  run: ({ spec, services }) => Promise.resolve(describeParameters(resolveConfig(spec.config), services.stages.length)),
};

/** Returns the exact counts, the bytes and the plan of a configuration. Nothing is allocated. */
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
