// The `create` job makes a new model, whose weights are drawn from a seed.

import { randomUUID } from 'node:crypto';
import { resolveConfig } from '../../model/config.ts';
import { newTokenizer } from '../../model/text/choice.ts';
import type { JobContext } from '../jobs/context.ts';
import type { Kind } from '../jobs/kind.ts';
import { createSpec, type CreateResult } from '../protocol/models.ts';
import { weightsBytes } from '../threads/memory.ts';
import { makeModel, MAKING } from './make-model.ts';

export const createKind: Kind<'create'> = {
  name: 'create',
  spec: createSpec,
  lane: MAKING.lane,
  atOnce: MAKING.atOnce,
  makes: ({ model }) => model,
  needs: ({ spec: { model, config } }) =>
    Promise.resolve({ bytes: weightsBytes(resolveConfig(config)), what: `Creating ${model}` }),
  check: () => Promise.resolve(),
  run,
};

async function run(context: JobContext<'create'>): Promise<CreateResult> {
  const { spec, services } = context;
  const config = resolveConfig(spec.config);
  const tokenizer = newTokenizer(config.vocab_size, spec.tokenizer);
  const source = randomUUID();
  await services.preparer.call('initBegin', { source, config, seed: spec.seed, scheme: spec.init });
  return await makeModel(context, { config, tokenizer, source });
}
