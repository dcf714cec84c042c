// What a submission is checked for beyond its schema, before anything is stored: whatever is certain to fail later is refused
// now, with the same sentence.

import { checkTokenIds, resolveConfig, type GptConfig } from '../../model/config.ts';
import { GptdError } from '../../model/errors.ts';
import { tokenCountMin, type TokenizerSpec } from '../../model/text/tokenizer.ts';
import type { StoredModel } from '../../workers/store/messages.ts';
import { describeParameters } from '../models/create.ts';
import type { Services } from './context.ts';
import { admit, admitTraining, servingPeakBytes, weightsBytes } from '../threads/memory.ts';
import { modelOf, resolveModel } from '../threads/model-reference.ts';
import { planStages } from '../threads/plan.ts';
import type { GenerateSpec, JobKind, JobSpecs, TrainSpec } from '../protocol/kinds.ts';
import { checkSchedule, trainingShape } from '../training/shape.ts';

interface Submission {
  readonly kind: JobKind;
  readonly spec: JobSpecs[JobKind];
  /** Jobs that have not ended. */
  readonly pending: readonly { readonly kind: JobKind; readonly spec: unknown }[];
}

/** Throws `invalid_spec`, `not_found`, `conflict` or `out_of_memory`. */
export async function checkSubmission(services: Services, { kind, spec, pending }: Submission): Promise<void> {
  switch (kind) {
    case 'params':
      describeParameters(resolveConfig((spec as JobSpecs['params']).config), services.stages.length);
      return;
    case 'create': {
      const { model, config } = spec as JobSpecs['create'];
      admit(weightsBytes(resolveConfig(config)), {
        budgetBytes: services.memoryBudgetBytes,
        what: `Creating ${model}`,
      });
      return;
    }
    case 'import':
      for (const digest of Object.values((spec as JobSpecs['import']).files)) await needBlob(services, digest);
      return;
    case 'train':
      await checkTrain(services, { spec: spec as TrainSpec, pending });
      return;
    case 'generate':
      await checkGenerate(services, { spec: spec as GenerateSpec, pending });
      return;
    case 'evaluate': {
      const { model, data, contextLength } = spec as JobSpecs['evaluate'];
      for (const { digest } of data) await needBlob(services, digest);
      const stored = await storedModel(services, { reference: model, pending });
      if (stored !== null) trainingShape({ batchSize: 1, contextLength }, stored.config.context_length);
      return;
    }
    case 'export':
      await storedModel(services, { reference: (spec as JobSpecs['export']).model, pending });
      return;
    default:
      kind satisfies never;
  }
}

async function checkTrain(
  services: Services,
  { spec, pending }: { spec: TrainSpec; pending: Submission['pending'] },
): Promise<void> {
  for (const { digest } of spec.data) await needBlob(services, digest);
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
  const model = await storedModel(services, { reference: spec.model, pending });
  if (model === null) return;
  const { config } = model;
  const shape = { batchSize: spec.batchSize, ...trainingShape(spec, config.context_length) };
  const stageCount = planStages(config, services.stages.length).length;
  admitTraining(
    config,
    { ...shape, stageCount },
    { budgetBytes: services.memoryBudgetBytes, what: `Training ${spec.model}` },
  );
}

async function checkGenerate(
  services: Services,
  { spec, pending }: { spec: GenerateSpec; pending: Submission['pending'] },
): Promise<void> {
  if ((spec.prompt === undefined) === (spec.promptIds === undefined)) {
    throw new GptdError('invalid_spec', 'Give either prompt or promptIds.');
  }
  const model = await storedModel(services, { reference: spec.model, pending });
  if (model === null) return;
  const { config } = model;
  const ids = spec.promptIds;
  checkIds(spec, config);
  if (ids?.length === 0 || spec.prompt === '') {
    throw new GptdError('invalid_spec', 'The prompt is empty: give at least one token.');
  }
  const tokenizer = model.tokenizer as TokenizerSpec | null;
  const atLeast = tokenizer === null ? 0 : tokenCountMin(tokenizer, spec.prompt ?? '');
  const count = ids?.length ?? atLeast;
  if (count > config.context_length) {
    throw new GptdError(
      'invalid_spec',
      `The prompt has ${ids === undefined && tokenizer?.type === 'gpt2' ? 'at least ' : ''}${count} tokens: ` +
        `the model's context holds ${config.context_length}. Shorten the prompt.`,
    );
  }
  admit(servingPeakBytes(config, spec.quantize ?? null), {
    budgetBytes: services.memoryBudgetBytes,
    what: `Generating with ${spec.model}`,
  });
}

/** Every id that the spec names is one of the model's, and one at least may be generated. */
function checkIds(spec: GenerateSpec, config: GptConfig): void {
  const lists: readonly (readonly [what: string, ids: readonly number[]])[] = [
    ['The prompt', spec.promptIds ?? []],
    ['stopIds', spec.stopIds],
    ['bannedIds', spec.bannedIds],
    ['logitBias', Object.keys(spec.logitBias ?? {}).map(Number)],
  ];
  for (const [what, ids] of lists) checkTokenIds(ids, { config, what });
  const V = config.vocab_size;
  if (new Set(spec.bannedIds).size === V) {
    throw new GptdError('invalid_spec', `bannedIds has all ${V} ids of the model: leave at least one out.`);
  }
}

/** The model; null when a job that has not ended is about to make it. Throws `not_found`. */
async function storedModel(
  { store }: Services,
  { reference, pending }: { reference: string; pending: Submission['pending'] },
): Promise<StoredModel | null> {
  try {
    return (await resolveModel(store, reference)).model;
  } catch (error) {
    const name = modelOf({ model: reference });
    const coming = pending.some(({ kind, spec }) => (kind === 'create' || kind === 'import') && modelOf(spec) === name);
    if (coming && error instanceof GptdError && error.code === 'not_found') return null;
    throw error;
  }
}

async function needBlob({ store }: Services, digest: string): Promise<void> {
  const { sizeBytes } = await store.call('hasBlob', { hash: digest });
  if (sizeBytes === null) {
    throw new GptdError(
      'not_found',
      `There is no blob sha256:${digest}: upload it first with PUT /v1/blobs/sha256:${digest}.`,
    );
  }
  if (sizeBytes === 0) throw new GptdError('invalid_spec', `The blob sha256:${digest} is empty: it holds no data.`);
}
