// This is training as a kind of job. It says what is refused before a job is queued, and how much memory the job takes; job.ts
// runs it.

import { GptdError } from '../../model/errors.ts';
import type { Kind, Submission } from '../jobs/kind.ts';
import { trainSpec } from '../protocol/training.ts';
import { trainingNeed } from '../threads/memory.ts';
import { planStages } from '../threads/plan.ts';
import { runTrain } from './job.ts';
import { checkSchedule, trainingShape } from './shape.ts';

export const trainKind: Kind<'train'> = {
  name: 'train',
  spec: trainSpec,
  // A training has the stages' memory to itself.
  lane: 'train',
  atOnce: 1,
  trains: true,
  needs: async (submission) => {
    const { spec, services } = submission;
    const model = await submission.model();
    if (model === null) return null;
    const { config } = model;
    const stageCount = planStages(config, services.stages.length).length;
    const shape = { batchSize: spec.batchSize, ...trainingShape(spec, config.context_length), stageCount };
    return trainingNeed(config, shape, { model: spec.model, budgetBytes: services.memoryBudgetBytes });
  },
  check,
  run: runTrain,
};

async function check(submission: Submission<'train'>): Promise<void> {
  const { spec } = submission;
  for (const { digest } of spec.data) await submission.requireBlob(digest);
  if (spec.steps !== undefined && spec.epochs !== undefined) {
    throw new GptdError('invalid_spec', 'steps and epochs are both given: give one of them.');
  }
  if (spec.minLr > spec.lr) {
    throw new GptdError('invalid_spec', `minLr ${spec.minLr} is above lr ${spec.lr}: it is where the rate ends.`);
  }
  if (spec.samplePrompt !== undefined && spec.sampleEvery === 0) {
    throw new GptdError('invalid_spec', 'samplePrompt is given and sampleEvery is not: say how often to sample.');
  }
  if (spec.patience !== undefined && (spec.evalEvery === 0 || spec.valSplit === 0)) {
    throw new GptdError(
      'invalid_spec',
      'patience counts evaluations of the validation part: give evalEvery and a valSplit above 0.',
    );
  }
  if (spec.steps !== undefined) checkSchedule(spec, spec.steps);
  const model = await submission.model();
  if (model !== null) trainingShape(spec, model.config.context_length);
}
