// Finds the files of an import: the files in a directory that belong to the model. No daemon is asked.

import { readFile } from 'node:fs/promises';
import { basename, dirname, extname, join } from 'node:path';
import {
  SHARD_PATTERN,
  TOKENIZER_FILES,
  WEIGHTS_FILE,
  WEIGHTS_INDEX_FILE,
} from '../../../daemon/protocol/interchange.ts';
import type { SourceFile } from '../../client/upload.ts';
import { usageError } from '../../exit-codes.ts';
import { checkSourceFile, statIfThere } from '../../source-files.ts';

/**
 * Resolves to the files of an import by their names in the spec. `path` is a directory, or a file of weights with the other files
 * beside it. The index names the shards. Throws a usage error when the weights are missing.
 */
export async function importFilesOf(path: string): Promise<Readonly<Record<string, SourceFile>>> {
  const stats = await statIfThere(path);
  if (stats === undefined) throw usageError(`There is no file or directory ${path}.`);
  const directory = stats.isDirectory() ? path : dirname(path);
  const isIndex = basename(path).endsWith('.safetensors.index.json');
  if (!stats.isDirectory() && !isIndex && extname(path) !== '.safetensors') {
    throw usageError(
      `${basename(path)} cannot be imported: a directory with ${WEIGHTS_FILE} or a .safetensors file was wanted.`,
    );
  }
  const indexFile = isIndex ? path : join(directory, WEIGHTS_INDEX_FILE);
  const isThere = async (name: string): Promise<boolean> => (await statIfThere(join(directory, name))) !== undefined;
  const hasWeights = !stats.isDirectory() || (await isThere(WEIGHTS_FILE));
  const takesIndex = isIndex || (!hasWeights && (await isThere(WEIGHTS_INDEX_FILE)));
  if (!hasWeights && !takesIndex) {
    throw usageError(
      `${path} has no ${WEIGHTS_FILE} and no ${WEIGHTS_INDEX_FILE}: weights are read as safetensors, not as PyTorch's .bin or .pt.`,
    );
  }
  const files: Record<string, SourceFile> = {};
  if (takesIndex) {
    files[WEIGHTS_INDEX_FILE] = await checkSourceFile(indexFile);
    for (const shard of await shardsOf(indexFile)) files[shard] = await checkSourceFile(join(directory, shard));
  } else {
    files[WEIGHTS_FILE] = await checkSourceFile(stats.isDirectory() ? join(directory, WEIGHTS_FILE) : path);
  }
  for (const name of ['config.json', ...TOKENIZER_FILES]) {
    const file = join(directory, name);
    const there = await statIfThere(file);
    if (there?.isFile() === true && there.size > 0) files[name] = { path: file, sizeBytes: there.size };
  }
  return files;
}

async function shardsOf(indexFile: string): Promise<readonly string[]> {
  let map: unknown;
  try {
    ({ weight_map: map } = JSON.parse(await readFile(indexFile, 'utf8')) as { weight_map?: unknown });
  } catch (cause) {
    throw usageError(`${indexFile} is not JSON: ${(cause as Error).message}.`);
  }
  const shards = new Set(typeof map === 'object' && map !== null ? Object.values(map as Record<string, unknown>) : []);
  const bad = [...shards].find((shard) => typeof shard !== 'string' || !SHARD_PATTERN.test(shard));
  if (bad !== undefined || shards.size === 0) {
    throw usageError(`${indexFile} must map tensors to shards like model-00001-of-00002.safetensors.`);
  }
  return [...shards] as string[];
}
