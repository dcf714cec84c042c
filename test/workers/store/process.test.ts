// Checks the built store behind real threads and processes: what a request keeps across the thread, and what survives SIGKILL.

import { spawn, spawnSync } from 'node:child_process';
import { once } from 'node:events';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { pathToFileURL } from 'node:url';
import Database from 'better-sqlite3';
import { beforeAll, describe, expect, it, onTestFinished } from 'vitest';
import type { StoreClient } from '../../../src/daemon/threads/store-client.ts';
import { weightsDigest } from '../../../src/model/digest.ts';
import { tensorTable } from '../../../src/model/tensors.ts';
import { openReader } from '../../../src/workers/store/reader.ts';
import { countRows, openedStore, temporaryDirectory, TINY, tinyChunks } from './fixture.ts';

const ROOT = path.resolve(import.meta.dirname, '../../..');
const built = (file: string): string => pathToFileURL(path.join(ROOT, 'dist', file)).href;

// A child process and a worker thread run JavaScript. The build is incremental, and quick when nothing has changed.
beforeAll(() => {
  spawnSync(process.execPath, [path.join(ROOT, 'node_modules/typescript/bin/tsc'), '-p', 'tsconfig.build.json'], {
    cwd: ROOT,
  });
});

async function openedClient(dataDir = temporaryDirectory()): Promise<StoreClient> {
  const module = (await import(built('daemon/threads/store-client.js'))) as {
    readonly StoreClient: typeof StoreClient;
  };
  const client = await module.StoreClient.open({ dataDir });
  onTestFinished(() => client.close());
  return client;
}

describe('StoreClient', () => {
  it('keeps the code of an error that crosses the thread, and leaves no thread when it cannot open', async () => {
    const dataDir = temporaryDirectory();
    const client = await openedClient(dataDir);
    await expect(client.call('getJob', { jobId: 'x' })).rejects.toMatchObject({
      name: 'GptdError',
      code: 'not_found',
      message: 'There is no job x.',
    });
    await expect(openedClient(dataDir)).rejects.toMatchObject({ code: 'conflict' });
    const last = client.call('getJob', { jobId: 'y' });
    const closed = client.close();
    await expect(client.call('getJob', { jobId: 'z' })).rejects.toMatchObject({ code: 'shutting_down' });
    await expect(last).rejects.toMatchObject({ message: 'There is no job y.' });
    await closed;
    await client.close();
    await openedClient(dataDir);
  });

  it('rejects a bug as a plain error', async () => {
    const client = await openedClient();
    const attempt = client.call('putChunks', { checkpointId: 99, chunks: [] });
    await expect(attempt).rejects.toThrow('assertion failed: checkpoint 99 is not being written');
    await expect(attempt).rejects.not.toHaveProperty('code');
  });

  it('moves bytes to the thread and back', async () => {
    const client = await openedClient();
    const { uploadId } = await client.call('beginBlob', {});
    const bytes = new Uint8Array(100_000).fill(7);
    await client.call('putBlobChunk', { uploadId, bytes });
    expect(bytes).toHaveLength(0);
    const small = Buffer.from('in the pool that Node shares');
    await client.call('putBlobChunk', { uploadId, bytes: small });
    expect(small.toString()).toBe('in the pool that Node shares');
    const { hash, sizeBytes } = await client.call('commitBlob', { uploadId });
    expect(sizeBytes).toBe(100_028);
    const { bytes: read } = await client.call('readBlobChunk', { hash, index: 0 });
    expect(read).toEqual(new Uint8Array(100_000).fill(7));
  });

  it.each([false, true])('takes chunks that are views of one buffer, shared: %s', async (shared) => {
    const client = await openedClient();
    const { checkpointId } = await client.call('beginCheckpoint', { model: 'm', step: 0, jobId: 'job', config: TINY });
    const chunks = tinyChunks('w', () => 1);
    const sizeBytes = chunks.reduce((sum, { bytes }) => sum + bytes.length, 0);
    const whole = new Uint8Array(shared ? new SharedArrayBuffer(sizeBytes) : new ArrayBuffer(sizeBytes));
    let offset = 0;
    const views = chunks.map((chunk) => {
      whole.set(chunk.bytes, offset);
      offset += chunk.bytes.length;
      return { ...chunk, bytes: whole.subarray(offset - chunk.bytes.length, offset) };
    });
    await client.call('putChunks', { checkpointId, chunks: views });
    // Shared memory stays, and any other memory has left this thread.
    expect(whole.buffer.byteLength).toBe(shared ? whole.length : 0);
    const { checkpoint } = await client.call('commitCheckpoint', {
      checkpointId,
      meta: { fingerprint: 'test', loss: null, valLoss: null },
      newModel: { name: 'm', config: TINY, tokenizer: null },
    });
    const digest = weightsDigest(TINY);
    for (const { tensor, bytes } of chunks) digest.update(tensor, bytes);
    expect(checkpoint.digest).toBe(digest.digest());
  });
});

/**
 * Writes an event a step, and every few steps a checkpoint with optimizer state, as a training does. Prints what was
 * acknowledged.
 */
const CHILD = `
  import { randomFillSync } from 'node:crypto';
  import { writeSync } from 'node:fs';
  import { openStore } from '${built('workers/store/thread.js')}';
  import { tensorTable } from '${built('model/tensors.js')}';
  const [dataDir, config] = [process.argv[1], JSON.parse(process.argv[2])];
  const store = openStore(dataDir);
  const say = (line) => writeSync(1, JSON.stringify(line) + '\\n');
  store.submitJob({ jobId: 'job', kind: 'train', spec: {}, key: 'key', priority: 0, queueLimit: 9 });
  const newest = store.listModels({}).models[0]?.checkpoint.step ?? 0;
  for (let step = newest + 1; ; step++) {
    const { events } = store.appendEvents({ items: [{ jobId: 'job', type: 'step', data: { step }, key: 'step-' + step }] });
    if (events[0]) say({ seq: events[0].seq });
    const { checkpointId } = store.beginCheckpoint({ model: 'm', step, jobId: 'job', config });
    for (const part of ['w', 'm', 'v']) {
      const chunks = tensorTable(config).map(({ name, size }) =>
        ({ tensor: name, part, offsetBytes: 0, bytes: randomFillSync(new Uint8Array(4 * size)) }));
      for (const chunk of chunks) store.putChunks({ checkpointId, chunks: [chunk] });
      say({ putting: step });
    }
    const { checkpoint } = store.commitCheckpoint({
      checkpointId,
      meta: { fingerprint: 'test', loss: null, valLoss: null },
      newModel: step === 1 ? { name: 'm', config, tokenizer: null } : undefined,
      keepLast: 2,
    });
    say({ step, digest: checkpoint.digest });
  }`;

interface Acknowledgement {
  readonly seq?: number;
  readonly step?: number;
  readonly digest?: string;
}

/** Runs the child until it has printed `lineCount` lines, and kills it. Resolves to every line that it has printed. */
async function killAfter(lineCount: number, dataDir: string): Promise<Acknowledgement[]> {
  const config = JSON.stringify({ ...TINY, vocab_size: 5000, emb_dim: 32 });
  const child = spawn(process.execPath, ['--input-type=module', '-e', CHILD, dataDir, config], {
    stdio: ['ignore', 'pipe', 'inherit'],
  });
  const closed = once(child, 'close');
  const lines: Acknowledgement[] = [];
  for await (const line of createInterface({ input: child.stdout })) {
    lines.push(JSON.parse(line) as Acknowledgement);
    if (lines.length === lineCount) child.kill('SIGKILL');
  }
  await closed;
  expect(child.signalCode).toBe('SIGKILL');
  return lines;
}

it('keeps every acknowledged event and checkpoint through SIGKILL in mid-checkpoint', async () => {
  const dataDir = temporaryDirectory();
  let seqMax = 0;
  // The kills come after an event, between the parts of a checkpoint, and around commits.
  for (const lineCount of [13, 4, 8, 1, 10]) {
    const lines = await killAfter(lineCount, dataDir);
    const committed = lines.filter(({ digest }) => digest !== undefined).at(-1);
    seqMax = Math.max(seqMax, ...lines.map(({ seq }) => seq ?? 0));

    const db = new Database(path.join(dataDir, 'gptd.db'));
    expect(db.pragma('integrity_check', { simple: true })).toBe('ok');
    expect(db.pragma('foreign_key_check')).toEqual([]);
    db.close();

    const { store } = openedStore(dataDir);
    const { events, lastSeq } = store.readEvents({ jobId: 'job', after: 0, limit: 1000 });
    expect(lastSeq).toBeGreaterThanOrEqual(seqMax);
    expect(events.map(({ seq }) => seq)).toEqual(Array.from({ length: lastSeq }, (_, i) => i + 1));
    const { checkpoint, config } = store.getModel({ name: 'm' });
    if (committed !== undefined) expect(checkpoint.step).toBeGreaterThanOrEqual(committed.step!);
    if (checkpoint.step === committed?.step) expect(checkpoint.digest).toBe(committed.digest);

    const reader = openReader(dataDir);
    const digest = weightsDigest(config);
    for (const { name, size } of tensorTable(config)) {
      const request = { checkpointId: checkpoint.checkpointId, tensor: name, sizeBytes: 4 * size };
      digest.update(name, new Uint8Array(reader.readTensor({ ...request, part: 'w' }).buffer));
      expect(reader.readTensor({ ...request, part: 'v' })).toHaveLength(size);
    }
    reader.close();
    expect(digest.digest()).toBe(checkpoint.digest);
    // Nothing of the interrupted checkpoint is left.
    const visible = store.listCheckpoints({ model: 'm' }).checkpoints.length;
    expect(countRows(dataDir, 'SELECT count(*) FROM checkpoints')).toBe(visible);
    expect(countRows(dataDir, 'SELECT count(*) FROM chunks')).toBe(
      countRows(dataDir, 'SELECT count(DISTINCT hash) FROM checkpoint_chunks'),
    );
    store.close();
  }
});
