// Commands whose jobs read data files: the files become blobs, the flags and the blobs' digests the spec.

import type { CliContext } from './context.ts';
import { checkSpec, specFields, type SubmitFlags } from './flags.ts';
import { submitJob, type SessionUse } from './submit.ts';
import { checkSourceFile, dataFormatOf, DIGEST_TO_COME, uploadFile, type SourceFile } from './client/upload.ts';

/** Flags of `train` and `evaluate`; those that are not named here have the name and type of their field in the spec. */
export interface DataFlags extends SubmitFlags {
  readonly data: readonly string[];
  readonly tokenizer?: string;
  readonly [field: string]: unknown;
}

type DataKind = 'train' | 'evaluate';

/** The spec of a job whose data have the given digests, in the order of `flags.data`. */
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

/** Resolves to the exit code. */
export async function submitWithData(
  kind: DataKind,
  { model, flags, context }: { readonly model: string; readonly flags: DataFlags; readonly context: CliContext },
): Promise<number> {
  dataSpecOf(kind, { model, flags, digests: flags.data.map(() => DIGEST_TO_COME) });
  const files: SourceFile[] = [];
  for (const path of flags.data) files.push(await checkSourceFile(path));
  const spec = async ({ session, progress }: SessionUse): Promise<Readonly<Record<string, unknown>>> => {
    const digests: string[] = [];
    for (const file of files) digests.push(await uploadFile(file, { address: session.address, progress }));
    return dataSpecOf(kind, { model, flags, digests });
  };
  return submitJob({ kind, flags, context, spec });
}
