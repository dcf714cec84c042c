// When the stored data of a checkpoint are damaged, the error offers the newest older checkpoint that is whole by its name.

import { GptdError } from '../../model/errors.ts';
import type { Services } from '../jobs/context.ts';
import { resolveModel } from '../threads/model-reference.ts';
import { verifyModel } from './verify.ts';

/** Resolves to `error` with that offer added, or to `error` itself when the model's weights are not what is damaged. */
export async function withOffer(
  services: Services,
  { error, reference }: { readonly error: GptdError; readonly reference: string },
): Promise<GptdError> {
  try {
    const { model, checkpoint } = await resolveModel(services.store, reference);
    const { problem } = await verifyModel(services, `${model.name}@${checkpoint.step}`);
    if (problem === null) return error;
    const { checkpoints } = await services.store.call('listCheckpoints', { model: model.name });
    const older = checkpoints.filter(({ checkpointId }) => checkpointId < checkpoint.checkpointId).reverse();
    for (const { step } of older) {
      const name = `${model.name}@${step}`;
      const { recomputedDigest, digest } = await verifyModel(services, name);
      if (recomputedDigest === digest) {
        return new GptdError(error.code, `${error.message} The newest older checkpoint that is whole is ${name}.`);
      }
    }
    return new GptdError(error.code, `${error.message} No older checkpoint of ${model.name} is whole.`);
  } catch {
    // The first error is the one to report.
    return error;
  }
}
