// Uploads of files: only blobs that the daemon lacks are sent, and the upload reports its progress.

import { createHash } from 'node:crypto';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { uploadFile } from '../../../src/cli/client/upload.ts';
import { checkSourceFile } from '../../../src/cli/source-files.ts';
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

const silent = (): void => undefined;

it('sends a file once, under the hash of its bytes', async () => {
  const path = join(folder, 'book.txt');
  const bytes = Buffer.alloc(3 << 20, 'Call me Ishmael. ');
  await writeFile(path, bytes);
  const address = { url: peer.url, token: PEER_TOKEN };
  const file = await checkSourceFile(path);
  const digest = await uploadFile(file, { address, onProgress: silent });
  expect(digest).toBe(createHash('sha256').update(bytes).digest('hex'));
  expect(await uploadFile(file, { address, onProgress: silent })).toBe(digest);
  expect(peer.blobs.get(digest)?.equals(bytes)).toBe(true);
  const blob = `/v1/blobs/sha256:${digest}`;
  expect(peer.httpRequests).toEqual([`HEAD ${blob}`, `PUT ${blob}`, `HEAD ${blob}`]);
});

it('distinguishes a refused token from a missing daemon', async () => {
  const path = join(folder, 'small.txt');
  await writeFile(path, 'text');
  const file = await checkSourceFile(path);
  const refused = uploadFile(file, { address: { url: peer.url, token: 'wrong' }, onProgress: silent });
  await expect(refused).rejects.toMatchObject({
    problem: 'refused',
    message: expect.stringContaining('refused the token') as unknown,
  });
  const gone = await startPeer(() => undefined);
  await gone.close();
  const nobody = uploadFile(file, { address: { url: gone.url, token: PEER_TOKEN }, onProgress: silent });
  await expect(nobody).rejects.toMatchObject({ problem: 'no_daemon' });
});

it('reports how much of a large file is hashed, and then how much is uploaded', async () => {
  const path = join(folder, 'large.txt');
  const totalBytes = 9 << 20;
  await writeFile(path, Buffer.alloc(totalBytes, 'Some years ago. '));
  const told: { phase: string; done: number; total: number; unit: string }[] = [];
  const address = { url: peer.url, token: PEER_TOKEN };
  await uploadFile(await checkSourceFile(path), { address, onProgress: (progress) => told.push(progress) });
  for (const phase of ['hashing large.txt', 'uploading large.txt']) {
    const counts = told.filter((progress) => progress.phase === phase).map(({ done }) => done);
    expect(counts).toEqual([...counts].sort((a, b) => a - b));
    expect(counts.at(-1)).toBe(totalBytes);
  }
  expect(told.every(({ total, unit }) => total === totalBytes && unit === 'bytes')).toBe(true);
});
