// `model.verify` checks that a checkpoint holds the weights that its digest names, and that its training computed the steps that
// were reported. The digest is computed again from the stored chunks and the hash chain from the stored steps, on the preparer's
// thread, a tensor at a time.

import { randomUUID } from 'node:crypto';
import { GptdError } from '../../model/errors.ts';
import type { StoredCheckpoint, StoredModel } from '../../workers/store/messages.ts';
import type { Services } from '../jobs/context.ts';
import { resolveModel } from '../threads/model-reference.ts';
import type { VerifyResult } from '../protocol/history.ts';

/** Throws `not_found` for an unknown model or checkpoint. The result says what does not match. */
export async function verifyModel(services: Services, reference: string): Promise<VerifyResult> {
  const { model, checkpoint } = await resolveModel(services.store, reference);
  const { step, digest, meta, jobId } = checkpoint;
  const recomputed = await recomputeDigest(services, { model, checkpoint });
  const chain = meta.training?.chain ?? null;
  const recomputedChain = await recomputeChain(services, checkpoint);
  const problems = [
    ...(recomputed.problem === null ? [] : [recomputed.problem]),
    ...(recomputed.digest === null || recomputed.digest === digest
      ? []
      : [`The stored weights have the digest ${recomputed.digest}, and the checkpoint says ${digest}.`]),
    ...(recomputedChain === null || recomputedChain === chain
      ? []
      : [`The stored steps of job ${jobId} chain to ${recomputedChain}, and the checkpoint says ${chain}.`]),
  ];
  return {
    model: model.name,
    step,
    digest,
    recomputedDigest: recomputed.digest,
    chain,
    recomputedChain,
    problem: problems.length === 0 ? null : problems.join(' '),
    ok: problems.length === 0,
  };
}

async function recomputeDigest(
  { preparer }: Services,
  { model, checkpoint }: { model: StoredModel; checkpoint: StoredCheckpoint },
): Promise<{ digest: string | null; problem: string | null }> {
  const source = randomUUID();
  const { checkpointId } = checkpoint;
  await preparer.call('digestBegin', { source, checkpointId, config: model.config });
  try {
    for (;;) {
      const { digest } = await preparer.call('digestNext', { source });
      if (digest !== null) return { digest, problem: null };
    }
  } catch (error) {
    if (!(error instanceof GptdError) || error.code !== 'corrupt') throw error;
    return { digest: null, problem: error.message };
  } finally {
    await preparer.call('sourceEnd', { source });
  }
}

async function recomputeChain({ preparer }: Services, { step, jobId, meta }: StoredCheckpoint): Promise<string | null> {
  const { chainStart = null, chain = null, baseStep } = meta.training ?? { baseStep: 0 };
  if (chainStart === null || chain === null) return null;
  return (await preparer.call('chainSteps', { jobId, start: chainStart, after: baseStep, to: step })).chain;
}
