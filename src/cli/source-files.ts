// The files that a command names: the checks that need no daemon and come before anything is sent, and how the files are sent.

import type { Stats } from 'node:fs';
import { stat } from 'node:fs/promises';
import { LIMITS } from '../daemon/protocol/fields.ts';
import { uploadFile, type SourceFile } from './client/upload.ts';
import type { SessionUse } from './connection.ts';
import { usageError } from './exit-codes.ts';
import { formatBytes } from './render/records.ts';

/** Stands for a digest that is not known yet when a spec is checked. */
export const DIGEST_TO_COME = '0'.repeat(64);

/** Throws a usage error unless `path` is a file with something in it. */
export async function checkSourceFile(path: string): Promise<SourceFile> {
  const stats = await statIfThere(path);
  if (stats === undefined) throw usageError(`There is no file ${path}.`);
  if (!stats.isFile())
    throw usageError(`${path} is ${stats.isDirectory() ? 'a directory' : 'no regular file'}: a file was wanted.`);
  if (stats.size === 0) throw usageError(`${path} is empty.`);
  if (stats.size > LIMITS.blobBytesMax) {
    throw usageError(
      `${path} is ${formatBytes(stats.size)}: a file must be at most ${formatBytes(LIMITS.blobBytesMax)}.`,
    );
  }
  return { path, sizeBytes: stats.size };
}

/** Makes sure that the daemon holds the file's bytes, and shows the progress. Resolves to the digest of the bytes. */
export async function sendFile(file: SourceFile, { session, progress }: SessionUse): Promise<string> {
  const digest = await uploadFile(file, {
    address: session.address,
    onProgress: (data) => progress.updatePhase(data),
  });
  progress.clear();
  return digest;
}

/** Resolves to what is at `path`, or to undefined when nothing is there. */
export async function statIfThere(path: string): Promise<Stats | undefined> {
  try {
    return await stat(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    throw usageError(`${path} cannot be read: ${(error as Error).message}.`);
  }
}
