// The data of a training job: which tokenizer reads it, the dataset itself, and the tokenizer that a model takes over from its
// first text.

import { GptdError } from '../model/errors.ts';
import type { TokenizerSpec } from '../model/tokenizer.ts';
import type { StoredModel } from '../workers/messages.ts';
import { openDataset, type Dataset } from './dataset.ts';
import type { JobContext } from './job-context.ts';

/** Throws `invalid_spec` for another tokenizer than the model's, and for data that cannot be read that way. */
export async function prepareData({ spec, services, emit }: JobContext<'train'>, model: StoredModel): Promise<Dataset> {
  const stored = model.tokenizer as TokenizerSpec | { type: 'char'; alphabet: null } | null;
  const wanted = spec.tokenizer ?? stored?.type ?? 'none';
  if (stored !== null && wanted !== 'none' && wanted !== stored.type) {
    throw new GptdError(
      'invalid_spec',
      `${model.name} has the ${stored.type} tokenizer: it cannot be trained with ${wanted}.`,
    );
  }
  const tokenizer =
    wanted === 'none' || spec.tokenizer === 'none'
      ? null
      : (stored ?? (spec.tokenizer === 'char' ? { type: 'char' as const, alphabet: null } : { type: spec.tokenizer! }));
  const files = spec.data.map(({ digest, format }) => ({
    digest,
    format: format ?? (wanted === 'none' ? ('tokens' as const) : ('text' as const)),
  }));
  void emit(
    { type: 'progress', data: { phase: 'tokenize', done: 0, total: files.length, unit: 'files' } },
    { key: 'tokenize:0' },
  );
  const dataset = await openDataset(services, { files, tokenizer, vocabSize: model.config.vocab_size });
  const done = { phase: 'tokenize', done: files.length, total: files.length, unit: 'files' };
  void emit({ type: 'progress', data: done }, { key: 'tokenize:1' });
  const unset = stored === null || (stored.type === 'char' && stored.alphabet === null);
  if (unset && dataset.tokenizer !== null) {
    await services.store.call('setTokenizer', { name: model.name, tokenizer: dataset.tokenizer });
  }
  return dataset;
}
