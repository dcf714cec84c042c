// This is generation as a kind of job. It says what is refused before a job is queued, and how much memory the job takes; job.ts
// runs it.

import { checkTokenIds, type GptConfig } from '../../model/config.ts';
import { GptdError } from '../../model/errors.ts';
import { tokenCountMin } from '../../model/text/tokenizer.ts';
import type { Kind, Submission } from '../jobs/kind.ts';
import { generateSpec } from '../protocol/generation.ts';
import type { GenerateSpec } from '../protocol/kinds.ts';
import { servingPeakBytes } from '../threads/memory.ts';
import { runGenerate } from './job.ts';
import type { ServedModels } from './served-models.ts';

/** The number of generations that run at once. Each of their samples is a sequence in the batch of its model. */
const AT_ONCE = 256;

export const generateKind = (served: ServedModels): Kind<'generate'> => ({
  name: 'generate',
  spec: generateSpec,
  lane: 'generate',
  atOnce: AT_ONCE,
  needs: async (submission) => {
    const { model: reference, quantize } = submission.spec;
    const model = await submission.model();
    if (model === null) return null;
    return { bytes: servingPeakBytes(model.config, quantize ?? null), what: `Generating with ${reference}` };
  },
  check,
  run: (context) => runGenerate(context, served),
});

async function check(submission: Submission<'generate'>): Promise<void> {
  const { spec } = submission;
  if ((spec.prompt === undefined) === (spec.promptIds === undefined)) {
    throw new GptdError('invalid_spec', 'Give either prompt or promptIds.');
  }
  const model = await submission.model();
  if (model === null) return;
  const { config } = model;
  const ids = spec.promptIds;
  checkIds(spec, config);
  if (ids?.length === 0 || spec.prompt === '') {
    throw new GptdError('invalid_spec', 'The prompt is empty: give at least one token.');
  }
  const { tokenizer } = model;
  const atLeast = tokenizer === null ? 0 : tokenCountMin(tokenizer, spec.prompt ?? '');
  const count = ids?.length ?? atLeast;
  if (count > config.context_length) {
    throw new GptdError(
      'invalid_spec',
      `The prompt has ${ids === undefined && tokenizer?.type === 'gpt2' ? 'at least ' : ''}${count} tokens: ` +
        `the model's context holds ${config.context_length}. Shorten the prompt.`,
    );
  }
}

/** Throws `invalid_spec` unless every id that the spec names is one of the model's, and at least one id may be generated. */
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
