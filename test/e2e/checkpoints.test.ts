// Checks checkpoints as a user sees them: they are written while training goes on, listed, kept and pruned.

import { afterEach, expect, test } from 'vitest';
import type { CheckpointRecord } from '../../src/daemon/protocol/models.ts';
import { flagsOf, generateResult, ofType, startedHome, trainResult, type DataHome } from './daemon-fixture.ts';

const MODEL = { vocab_size: 256, context_length: 32, emb_dim: 48, n_heads: 3, n_layers: 2, drop_rate: 0.1, seed: 5 };
const TRAINING = { batch_size: 4, val_split: 0, lr: 1e-3, seed: 9 };
const TEXT = Array.from({ length: 200 }, (_, i) => `Line ${i} says ${(i * i) % 97} and ${(i * 31) % 53}.`).join('\n');

const homes: DataHome[] = [];
afterEach(async () => {
  await Promise.all(homes.splice(0).map((home) => home.close()));
});

async function homeWithModels(names: readonly string[]): Promise<DataHome> {
  const home = await startedHome({ workers: 2 });
  homes.push(home);
  for (const name of names) await home.json(['create', name, ...flagsOf(MODEL), '--tokenizer', 'byte']);
  home.write('data.txt', TEXT);
  return home;
}

const train = (home: DataHome, model: string, flags: Readonly<Record<string, string | number>>): string[] => [
  ...['train', model, '--data', `${home.dir}/data.txt`],
  ...flagsOf({ ...TRAINING, ...flags }),
];

const list = async (home: DataHome, model: string): Promise<readonly CheckpointRecord[]> =>
  (await home.json<{ checkpoints: CheckpointRecord[] }>(['checkpoints', model])).checkpoints;

test('each checkpoint holds the weights of its own step although training went on, and the last ones are kept', async () => {
  const home = await homeWithModels(['long', 'short']);
  const events = await home.events(train(home, 'long', { steps: 12, checkpoint_every: 1, keep_last: 3 }));
  const digests = new Map(ofType(events, 'checkpoint').map(({ data }) => [data.step, data.digest]));
  expect([...digests.keys()]).toEqual(Array.from({ length: 12 }, (_, i) => i + 1));
  // This run ends at step 5, and writes nothing before.
  const short = await home.events(train(home, 'short', { steps: 5, checkpoint_every: 0 }));
  expect(ofType(short, 'checkpoint')).toHaveLength(1);
  expect(trainResult(short).digest).toBe(digests.get(5));

  const kept = await list(home, 'long');
  expect(kept.map(({ step }) => step)).toEqual([0, 10, 11, 12]);
  for (const { step, digest, optimizer, loss, bytes } of kept.slice(1)) {
    expect(digest).toBe(digests.get(step));
    expect(optimizer).toBe(true);
    expect(loss).toBe(ofType(events, 'step').find(({ data }) => data.step === step)?.data.loss);
    expect(bytes).toBe(3 * kept[0].bytes);
  }
  const { stdout } = await home.cli(['checkpoints', 'long']);
  expect(stdout).toContain(kept[3].digest.slice(0, 8));
});

test('checkpoints by the clock change no bit of the training, and an interval of 0 seconds is refused', async () => {
  const home = await homeWithModels(['a', 'b']);
  const [byClock, atEnd] = [
    await home.events(train(home, 'a', { steps: 30, checkpoint_every: '1s' })),
    await home.events(train(home, 'b', { steps: 30, checkpoint_every: 0 })),
  ];
  expect(trainResult(byClock).digest).toBe(trainResult(atEnd).digest);
  const refused = await home.cli(train(home, 'a', { steps: 1, checkpoint_every: '0s' }));
  expect(refused.exitCode).toBe(2);
  expect(refused.stderr).toContain('a number of steps, or of seconds as in "60s"');
});

test('a generation by NAME works while training writes and prunes a checkpoint each step', async () => {
  const home = await homeWithModels(['busy']);
  const { jobId } = await home.json<{ jobId: string }>([
    ...train(home, 'busy', { steps: 5000, checkpoint_every: 1, keep_last: 1 }),
    '--detach',
  ]);
  for (let i = 0; i < 4; i++) {
    const events = await home.events(['generate', 'busy', '--prompt', 'Line', '--max-tokens', '3']);
    expect(generateResult(events).ids).toHaveLength(3);
  }
  expect(await home.json(['cancel', jobId])).toMatchObject({ state: 'cancelled' });
  expect((await list(home, 'busy')).length).toBeLessThanOrEqual(2);
});
