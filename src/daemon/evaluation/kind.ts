// This is evaluation as a kind of job. It says what is refused before a job is queued; job.ts runs it.

import type { Kind } from '../jobs/kind.ts';
import { evaluateSpec } from '../protocol/evaluation.ts';
import type { ServedModels } from '../serving/served-models.ts';
import { trainingShape } from '../training/shape.ts';
import { runEvaluate } from './job.ts';

/** `served` loads the models whose quantized weights are evaluated. */
export const evaluateKind = (served: ServedModels): Kind<'evaluate'> => ({
  name: 'evaluate',
  spec: evaluateSpec,
  lane: 'evaluate',
  atOnce: 1,
  // The length of the windows, and so the memory that they take, is known when the data have been read.
  needs: () => Promise.resolve(null),
  check: async (submission) => {
    const { data, contextLength } = submission.spec;
    for (const { digest } of data) await submission.requireBlob(digest);
    const model = await submission.model();
    if (model !== null) trainingShape({ batchSize: 1, contextLength }, model.config.context_length);
  },
  run: (context) => runEvaluate(context, served),
});
