// A submission reads from the store what a kind of job looks at before the job is queued.

import { assert, GptdError } from '../../model/errors.ts';
import type { StoredModel } from '../../workers/store/messages.ts';
import type { JobKind, JobSpecs } from '../protocol/kinds.ts';
import type { StoreClient } from '../threads/store-client.ts';
import { modelOf, referenceOf, resolveModel } from '../threads/model-reference.ts';
import type { Services } from './context.ts';
import type { Submission } from './kind.ts';

/** `isComing` says whether a job that has not ended is about to make the model of that name. */
export function submissionOf(
  services: Services,
  { spec, isComing }: { readonly spec: JobSpecs[JobKind]; readonly isComing: (model: string) => boolean },
): Submission {
  const { store } = services;
  let model: Promise<StoredModel | null> | undefined;
  return {
    spec,
    services,
    model: () => (model ??= findModel(store, { spec, isComing })),
    requireBlob: (digest) => requireBlob(store, digest),
  };
}

async function findModel(
  store: StoreClient,
  { spec, isComing }: { readonly spec: JobSpecs[JobKind]; readonly isComing: (model: string) => boolean },
): Promise<StoredModel | null> {
  const reference = referenceOf(spec);
  assert(reference !== undefined, 'the spec of a kind that asks for its model names one');
  try {
    return (await resolveModel(store, reference)).model;
  } catch (error) {
    const isMissing = error instanceof GptdError && error.code === 'not_found';
    if (isMissing && isComing(modelOf(spec)!)) return null;
    throw error;
  }
}

async function requireBlob(store: StoreClient, digest: string): Promise<void> {
  const { sizeBytes } = await store.call('hasBlob', { hash: digest });
  if (sizeBytes === null) {
    throw new GptdError(
      'not_found',
      `There is no blob sha256:${digest}: upload it first with PUT /v1/blobs/sha256:${digest}.`,
    );
  }
  if (sizeBytes === 0) throw new GptdError('invalid_spec', `The blob sha256:${digest} is empty: it holds no data.`);
}
