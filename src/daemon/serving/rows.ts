// This runs one step of a loaded model. Its rows go through the stages, from the one that embeds to the one with the head. The
// callers decide whose rows they are (batcher.ts, evaluation/served-loss.ts); rows do not depend on their neighbours.

import { assert } from '../../model/errors.ts';
import type { SequenceBegin, ServeShare } from '../../workers/serving/messages.ts';
import type { StageCalls } from '../../workers/stage-messages.ts';
import type { GptConfig } from '../../model/config.ts';
import type { PlanStage } from '../protocol/models.ts';
import type { StageCaller } from '../threads/stages.ts';
import type { Priority } from '../threads/worker-thread.ts';

/** A checkpoint whose blocks are on the stages. */
export interface LoadedModel {
  readonly lease: string;
  readonly config: GptConfig;
  readonly stages: readonly { readonly thread: StageCaller; readonly plan: PlanStage }[];
}

export interface ServedRows {
  /** The ids of the rows of all shares. */
  readonly ids: readonly number[];
  readonly shares: readonly ServeShare[];
  /** The sequences that begin with these rows and will sample. */
  readonly begins?: readonly SequenceBegin[];
  /** The same as in StageCalls.serveStep. */
  readonly targets?: readonly number[];
}

/** Resolves to the reply of the stage with the head. Rejects as the stages' threads do. */
export async function serveRows(
  { lease, stages }: LoadedModel,
  { ids, shares, begins, targets, priority }: ServedRows & { readonly priority: Priority },
): Promise<StageCalls['serveStep'][1]> {
  const embedder = stages.find(({ plan }) => plan.embeds)!;
  let input: readonly number[] | Float32Array = ids;
  if (embedder.plan.firstBlock !== 0) {
    // A tied wte lives with the head, whose stage looks the rows up for the first one.
    input = (await embedder.thread.call('serveEmbed', { lease, ids, shares }, { priority })).x;
  }
  for (const { thread, plan } of stages) {
    const step = { lease, input, shares, begins: plan.head ? begins : undefined, targets };
    const reply: StageCalls['serveStep'][1] = await thread.call('serveStep', step, { priority });
    if (plan.head) return reply;
    input = reply.x!;
  }
  assert(false, 'no stage has the head');
}
