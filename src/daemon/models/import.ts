// The `import` job makes a new model from files of weights, which the client has uploaded as blobs.

import { randomUUID } from 'node:crypto';
import { importedTokenizer } from '../../model/text/choice.ts';
import type { JobContext } from '../jobs/context.ts';
import type { Kind } from '../jobs/kind.ts';
import { importSpec, TOKENIZER_FILES } from '../protocol/interchange.ts';
import type { CreateResult } from '../protocol/models.ts';
import { makeModel, MAKING } from './make-model.ts';

export const importKind: Kind<'import'> = {
  name: 'import',
  spec: importSpec,
  lane: MAKING.lane,
  atOnce: MAKING.atOnce,
  makes: ({ model }) => model,
  // Tensors are read and stored one after the other, so the job takes little memory.
  needs: () => Promise.resolve(null),
  check: async (submission) => {
    for (const digest of Object.values(submission.spec.files)) await submission.requireBlob(digest);
  },
  run,
};

async function run(context: JobContext<'import'>): Promise<CreateResult> {
  const { spec, services, emit } = context;
  const source = randomUUID();
  const { files } = spec;
  const opened = await services.preparer.call('importBegin', { source, files, headCount: spec.nHeads ?? null });
  for (const [i, message] of opened.notes.entries())
    await emit({ type: 'log', data: { message } }, { key: `note:${i}` });
  const tokenizer = importedTokenizer({
    vocabSize: opened.config.vocab_size,
    named: spec.tokenizer,
    found: opened.tokenizer,
    isNoted: opened.notes.length > 0,
  });
  const kept = TOKENIZER_FILES.flatMap((name) => (name in files ? [{ name, blob: files[name] }] : []));
  return await makeModel(context, { config: opened.config, tokenizer, source, files: kept });
}
