// What the rows about training share: a small model with dropout, one spec, and the comparison of a disturbed run with one that
// nothing disturbed.

import { createHash } from 'node:crypto';
import path from 'node:path';
import { isDeepStrictEqual } from 'node:util';
import type { JobEvent } from '../../src/daemon/protocol/jobs.ts';
import { flagsOf, ofType, RpcRefusal, trainResult, type DataHome } from '../e2e/daemon-fixture.ts';
import { check } from './row.ts';

export const STEPS = 12;
export const MODEL = {
  vocab_size: 256,
  context_length: 32,
  emb_dim: 32,
  n_heads: 2,
  n_layers: 4,
  drop_rate: 0.1,
  seed: 5,
};
const TEXT = Array.from({ length: 300 }, (_, i) => `Line ${i} says ${(i * i) % 97} and ${(i * 31) % 53}.`).join('\n');

/** The file that is loaded into a daemon's process before the daemon. */
export const HOOK = path.resolve(import.meta.dirname, 'interrupt.cjs');
export const hookEnv = (options: object = {}): Record<string, string> => ({
  NODE_OPTIONS: `--require ${HOOK}`,
  GPTD_INTERRUPT: JSON.stringify(options),
});

export const trainSpec = (model: string): object => ({
  model,
  data: [createHash('sha256').update(TEXT).digest('hex')],
  steps: STEPS,
  batchSize: 4,
  microBatchSize: 1,
  valSplit: 0.2,
  lr: 1e-3,
  seed: 9,
  evalEvery: 4,
  evalBatches: 1,
  checkpointEvery: 3,
});

/** Makes a model and uploads the training text. */
export async function makeModel(home: DataHome, name: string, fields: object = {}): Promise<void> {
  await home.json(['create', name, ...flagsOf({ ...MODEL, tokenizer: 'byte', init: 'gpt2', ...fields })]);
  await uploadText(home);
}

export async function uploadText(home: DataHome): Promise<void> {
  await upload(home, TEXT);
}

/** Puts a text into the store and resolves to the name of its blob. */
export async function upload(home: DataHome, text: string): Promise<string> {
  const { url, token } = home.daemon;
  const digest = createHash('sha256').update(text).digest('hex');
  const response = await fetch(`${url}/v1/blobs/sha256:${digest}`, {
    method: 'PUT',
    headers: { authorization: `Bearer ${token}` },
    body: text,
  });
  check(response.ok, `the upload was answered with ${response.status}`);
  return digest;
}

/** Submits a training under a key that repeats it. Resolves to the job's id, or to null when the daemon ended before it replied. */
export async function submit(home: DataHome, model: string, fields: object = {}): Promise<string | null> {
  let client;
  try {
    client = await home.connect();
    return await client.submit('train', { ...trainSpec(model), ...fields }, `train ${model}`);
  } catch (error) {
    if (error instanceof RpcRefusal) throw error;
    return null;
  } finally {
    client?.close();
  }
}

/** Resolves to all events of a job when it has ended. */
export async function wholeLog(home: DataHome, jobId: string): Promise<JobEvent[]> {
  const client = await home.connect();
  try {
    await client.subscribe(jobId);
    await client.untilEnd(jobId);
    return client.events;
  } finally {
    client.close();
  }
}

export interface Essence {
  readonly result: object;
  readonly steps: readonly (readonly number[])[];
  readonly evals: readonly (readonly (number | null)[])[];
  readonly checkpoints: readonly (readonly [number, string])[];
}

/** Returns what one spec gives however it is run: losses, norms, evaluations and digests. */
export function essence(events: readonly JobEvent[]): Essence {
  const { digest, step, loss, valLoss, tokens } = trainResult(events);
  return {
    result: { digest, step, loss, valLoss, tokens },
    steps: ofType(events, 'step').map(({ data }) => [data.step, data.loss, data.lr, data.gradNorm, data.tokens]),
    evals: ofType(events, 'eval').map(({ data }) => [data.step, data.trainLoss, data.valLoss]),
    checkpoints: ofType(events, 'checkpoint').map(({ data }) => [data.step, data.digest] as const),
  };
}

/** Throws unless the events of one job are there from the first on, each once. */
export function checkGapless(events: readonly JobEvent[], what = 'the log'): void {
  check(
    events.every(({ seq }, i) => seq === i + 1),
    `${what} has a gap or says something twice`,
  );
}

/** Throws unless the run gives what the reference gave. A stop or a pause may have written more checkpoints. */
export function checkSame(events: readonly JobEvent[], reference: Essence): void {
  checkGapless(events);
  const { checkpoints, ...rest } = essence(events);
  const due = new Set(reference.checkpoints.map(([step]) => step));
  const found = { ...rest, checkpoints: checkpoints.filter(([step]) => due.has(step)) };
  if (isDeepStrictEqual(found, reference)) return;
  throw new Error(`a run differs: ${JSON.stringify(found)} instead of ${JSON.stringify(reference)}`);
}
