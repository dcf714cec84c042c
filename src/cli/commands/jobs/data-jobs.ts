// What `train` and `evaluate` share, whose jobs read data files: the files become blobs, and the flags and the blobs' digests
// become the spec.

import { extname } from 'node:path';
import { Option } from 'commander';
import { TOKENIZERS, type DataFormat } from '../../../daemon/protocol/fields.ts';
import type { SourceFile } from '../../client/upload.ts';
import type { SessionUse } from '../../connection.ts';
import type { CliContext } from '../../context.ts';
import { checkSpec, specFields, type SubmitFlags } from '../../flags.ts';
import { checkSourceFile, DIGEST_TO_COME, sendFile } from '../../source-files.ts';
import { submitJob } from '../../submit.ts';

/** The flags of `train` and `evaluate`. A flag that is not named here has the name and the type of its field in the spec. */
export interface DataFlags extends SubmitFlags {
  readonly data: readonly string[];
  readonly tokenizer?: string;
  readonly [field: string]: unknown;
}

type DataKind = 'train' | 'evaluate';

export const dataTokenizerOption = (): Option =>
  new Option('--tokenizer <name>', "how text becomes tokens; none reads ids (default: the model's)").choices([
    ...TOKENIZERS,
    'none',
  ]);

/** Returns the spec of a job whose data have the given digests, in the order of `flags.data`. */
export function dataSpecOf(
  kind: DataKind,
  { model, flags, digests }: { readonly model: string; readonly flags: DataFlags; readonly digests: readonly string[] },
): Readonly<Record<string, unknown>> {
  const data = flags.data.map((path, index) => ({
    digest: digests[index],
    format: dataFormatOf(path, flags.tokenizer),
  }));
  const spec = { ...specFields(flags), model, data };
  checkSpec(kind, spec);
  return spec;
}

/** Uploads the data, submits the job and resolves to the exit code. */
export async function submitWithData(
  kind: DataKind,
  { model, flags, context }: { readonly model: string; readonly flags: DataFlags; readonly context: CliContext },
): Promise<number> {
  dataSpecOf(kind, { model, flags, digests: flags.data.map(() => DIGEST_TO_COME) });
  const files: SourceFile[] = [];
  for (const path of flags.data) files.push(await checkSourceFile(path));
  const spec = async (opened: SessionUse): Promise<Readonly<Record<string, unknown>>> => {
    const digests: string[] = [];
    for (const file of files) digests.push(await sendFile(file, opened));
    return dataSpecOf(kind, { model, flags, digests });
  };
  return submitJob({ kind, flags, context, spec });
}

/** Returns how the daemon shall read a data file. The extension decides, unless `--tokenizer none` makes all files token ids. */
function dataFormatOf(path: string, tokenizer: string | undefined): DataFormat {
  if (tokenizer === 'none') return 'tokens';
  const extension = extname(path).toLowerCase();
  if (extension === '.bin') return 'tokens';
  return extension === '.jsonl' ? 'jsonl' : 'text';
}
