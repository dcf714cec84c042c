// Files on their way to the daemon: what is checked before, and that only missing blobs are sent.

import { createHash } from 'node:crypto';
import { mkdtemp, mkdir, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { ProgressLine } from '../../../src/cli/render/progress-line.ts';
import { checkSourceFile, importFilesOf, uploadFile } from '../../../src/cli/client/upload.ts';
import { PEER_TOKEN, startPeer, type ScriptedPeer } from './scripted-peer.ts';

let folder: string;
let peer: ScriptedPeer;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'gptd-upload-'));
  peer = await startPeer(() => undefined);
});
afterAll(async () => {
  await peer.close();
  await rm(folder, { recursive: true });
});

const silent = new ProgressLine({ write: () => true });

it('sends a file once, under the hash of its bytes', async () => {
  const path = join(folder, 'book.txt');
  const bytes = Buffer.alloc(3 << 20, 'Call me Ishmael. ');
  await writeFile(path, bytes);
  const address = { url: peer.url, token: PEER_TOKEN };
  const file = await checkSourceFile(path);
  const digest = await uploadFile(file, { address, progress: silent });
  expect(digest).toBe(createHash('sha256').update(bytes).digest('hex'));
  expect(await uploadFile(file, { address, progress: silent })).toBe(digest);
  expect(peer.blobs.get(digest)?.equals(bytes)).toBe(true);
  const blob = `/v1/blobs/sha256:${digest}`;
  expect(peer.httpRequests).toEqual([`HEAD ${blob}`, `PUT ${blob}`, `HEAD ${blob}`]);
});

it('tells a refused token from a missing daemon', async () => {
  const path = join(folder, 'small.txt');
  await writeFile(path, 'text');
  const file = await checkSourceFile(path);
  const refused = uploadFile(file, { address: { url: peer.url, token: 'wrong' }, progress: silent });
  await expect(refused).rejects.toMatchObject({
    exitCode: 1,
    message: expect.stringContaining('refused the token') as unknown,
  });
  const gone = await startPeer(() => undefined);
  await gone.close();
  const nobody = uploadFile(file, { address: { url: gone.url, token: PEER_TOKEN }, progress: silent });
  await expect(nobody).rejects.toMatchObject({ exitCode: 69 });
});

it('wants a file with something in it', async () => {
  await writeFile(join(folder, 'empty.txt'), '');
  await expect(checkSourceFile(join(folder, 'empty.txt'))).rejects.toMatchObject({
    exitCode: 2,
    message: /is empty\.$/,
  });
  await expect(checkSourceFile(folder)).rejects.toMatchObject({
    exitCode: 2,
    message: /is a directory: a file was wanted\.$/,
  });
  await expect(checkSourceFile(join(folder, 'none'))).rejects.toMatchObject({
    exitCode: 2,
    message: /^There is no file /,
  });
});

it('finds the weights of an import and what is beside them', async () => {
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
