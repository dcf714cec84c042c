// This file prepares the data of a training or an evaluation: it chooses the tokenizer that reads them, opens the dataset,
// reports on it, and gives a model the tokenizer of its first training text.

import { adoptedTokenizer, dataTokenizer } from '../../model/text/choice.ts';
import type { StoredModel } from '../../workers/store/messages.ts';
import { openDataset, type Dataset } from './dataset.ts';
import { JobHalted, type JobContext } from '../jobs/context.ts';
import type { DatasetReport } from '../protocol/training.ts';
import type { Windows } from './windows.ts';

type DataContext = JobContext<'train'> | JobContext<'evaluate'>;

/** Throws when the job was cancelled or halted. It is called between the parts of a job that cannot be interrupted. */
export function stopIfAsked({ cancelled, halted }: Pick<DataContext, 'cancelled' | 'halted'>): void {
  cancelled.throwIfAborted();
  if (halted.aborted) throw new JobHalted();
}

/**
 * Opens the dataset of the spec. Throws `invalid_spec` for another tokenizer than the model's, and for data that it cannot read.
 */
export async function prepareData(context: DataContext, model: StoredModel): Promise<Dataset> {
  const { spec, services, emit } = context;
  const tokenizer = dataTokenizer(model, spec.tokenizer);
  const files = spec.data.map(({ digest, format }) => ({
    digest,
    format: format ?? (tokenizer === null ? ('tokens' as const) : ('text' as const)),
  }));
  const say = (done: number, total: number): void => {
    const data = { phase: 'tokenize', done, total, unit: 'bytes' };
    // Each percent is reported once, however large the files are.
    void emit({ type: 'progress', data }, { key: `tokenize:${Math.floor((100 * done) / Math.max(1, total))}` });
  };
  return await openDataset(
    services,
    { files, tokenizer, vocabSize: model.config.vocab_size },
    { onProgress: say, check: () => stopIfAsked(context) },
  );
}

/** A model that had no tokenizer, or no alphabet, keeps that of its first training text. */
export async function adoptTokenizer(
  { services }: DataContext,
  { model, dataset }: { model: StoredModel; dataset: Dataset },
): Promise<void> {
  const tokenizer = adoptedTokenizer(model.tokenizer, dataset.tokenizer);
  if (tokenizer !== null) await services.store.call('setTokenizer', { name: model.name, tokenizer });
}

/** Resolves to the report on the data of a training. Duplicate windows are counted over the tokens of the dataset. */
export async function reportDataset(
  { services }: DataContext,
  { dataset, windows, contextLength }: { dataset: Dataset; windows: Windows; contextLength: number },
): Promise<DatasetReport> {
  const { tokens, wideTokens } = dataset;
  const { trainWindows, validationWindows, validationStart } = windows;
  const { duplicates } =
    validationWindows === 0
      ? { duplicates: 0 }
      : await services.preparer.call('duplicateWindows', {
          tokens,
          wideTokens,
          windowStarts: validationStart,
          windowTokens: contextLength + 1,
          stride: contextLength,
        });
  return { ...describeDataset(dataset), trainWindows, validationWindows, duplicateWindows: duplicates };
}

/** Returns the number of tokens, and how much text one token stands for. */
function describeDataset({
  tokenCount,
  characterCount,
  byteCount,
}: Dataset): Pick<DatasetReport, 'tokens' | 'charactersPerToken' | 'bytesPerToken'> {
  const perToken = (count: number): number | null => (count === 0 ? null : count / tokenCount);
  return {
    tokens: tokenCount,
    charactersPerToken: perToken(characterCount),
    bytesPerToken: perToken(byteCount),
  };
}
