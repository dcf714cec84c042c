// Checks which files of a directory an import takes, and what the command says when there are no weights.

import { mkdtemp, mkdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { importFilesOf } from '../../../../src/cli/commands/models/import-files.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'gptd-import-files-'));
});
afterAll(() => rm(folder, { recursive: true }));

it('finds the weights of an import and the files beside them', async () => {
  const source = join(folder, 'weights');
  await mkdir(source);
  await writeFile(join(source, 'model.safetensors'), 'w');
  expect(Object.keys(await importFilesOf(source))).toEqual(['model.safetensors']);
  await writeFile(join(source, 'config.json'), '{}');
  await writeFile(join(source, 'other.safetensors'), 'ww');
  const config = { path: join(source, 'config.json'), sizeBytes: 2 };
  expect(await importFilesOf(source)).toEqual({
    'model.safetensors': { path: join(source, 'model.safetensors'), sizeBytes: 1 },
    'config.json': config,
  });
  expect(await importFilesOf(join(source, 'other.safetensors'))).toEqual({
    'model.safetensors': { path: join(source, 'other.safetensors'), sizeBytes: 2 },
    'config.json': config,
  });
  await expect(importFilesOf(join(source, 'config.json'))).rejects.toThrow('config.json cannot be imported');
});

it('finds the shards that an index names, and the files of the tokenizer', async () => {
  const source = join(folder, 'shards');
  await mkdir(source);
  const index = join(source, 'model.safetensors.index.json');
  await expect(importFilesOf(source)).rejects.toThrow(
    `${source} has no model.safetensors and no model.safetensors.index.json: weights are read as safetensors`,
  );
  const shards = ['model-00001-of-00002.safetensors', 'model-00002-of-00002.safetensors'];
  await writeFile(index, JSON.stringify({ weight_map: { a: shards[0], b: shards[1], c: shards[0] } }));
  await writeFile(join(source, shards[0]), 'w');
  await expect(importFilesOf(source)).rejects.toThrow(`There is no file ${join(source, shards[1])}.`);
  await writeFile(join(source, shards[1]), 'w');
  for (const name of ['vocab.json', 'merges.txt', 'README.md']) await writeFile(join(source, name), '{}');
  const found = ['model.safetensors.index.json', ...shards, 'vocab.json', 'merges.txt'];
  expect(Object.keys(await importFilesOf(source))).toEqual(found);
  expect(Object.keys(await importFilesOf(index))).toEqual(found);
  await writeFile(join(source, 'model.safetensors'), 'w');
  expect(Object.keys(await importFilesOf(source))[0]).toBe('model.safetensors');
  await writeFile(index, JSON.stringify({ weight_map: { a: '../secret.safetensors' } }));
  await expect(importFilesOf(index)).rejects.toThrow('must map tensors to shards');
});
