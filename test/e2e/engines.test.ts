// Runs one model under both engines: a daemon reports its engine, and a training that goes on under another engine announces that
// and comes to close numbers.

import { afterAll, beforeAll, expect, test } from 'vitest';
import type { DaemonStatus } from '../../src/daemon/protocol/daemon.ts';
import type { JobEvent } from '../../src/daemon/protocol/jobs.ts';
import { relative } from '../golden/golden.ts';
import { generateResult, ofType, startedHome, type DataHome } from './daemon-fixture.ts';

const MODEL = ['--vocab-size', '256', '--context-length', '32', '--emb-dim', '32', '--n-layers', '2', '--n-heads', '2'];
const TRAIN = ['--batch-size', '2', '--val-split', '0', '--seed', '5', '--eval-every', '0'];

let home: DataHome;

beforeAll(async () => {
  home = await startedHome({ workers: 2, flags: ['--engine', 'onnx'] });
});
afterAll(() => home.close());

const lossesOf = (events: readonly JobEvent[]): number[] => ofType(events, 'step').map(({ data }) => data.loss);

test('a model moves from ONNX Runtime to TensorFlow.js, which is announced, and trains and generates there as before', async () => {
  const data = home.write('text.txt', Buffer.from('the quick brown fox jumps over the lazy dog. '.repeat(60)));
  const train = (name: string): Promise<JobEvent[]> =>
    home.events(['train', name, '--data', data, '--steps', '3', ...TRAIN]);
  for (const name of ['moved', 'stayed']) await home.json(['create', name, ...MODEL, '--tokenizer', 'byte']);
  const first = await train('moved');
  expect(lossesOf(await train('stayed'))).toEqual(lossesOf(first));
  const [expected, said] = [
    await train('stayed'),
    await home.events(['generate', 'moved', '--prompt', 'the ', '--max-tokens', '12']),
  ];
  expect((await home.json<DaemonStatus>(['status'])).engine).toMatchObject({ name: 'onnx', backend: 'cpu' });

  await home.restart('SIGTERM', { workers: 2, flags: ['--engine', 'tensorflow'] });
  const { engine } = await home.json<DaemonStatus>(['status']);
  expect(engine).toMatchObject({ name: 'tensorflow', backend: 'wasm' });
  expect(engine.fingerprint).toBe(`tensorflow.js ${engine.version} wasm-simd`);
  const spoken = await home.events(['generate', 'moved', '--prompt', 'the ', '--max-tokens', '12']);
  expect(generateResult(spoken).ids).toEqual(generateResult(said).ids);

  const moved = await train('moved');
  const announced = ofType(moved, 'log').map((event) => JSON.stringify(event.data));
  expect(announced.filter((text) => text.includes('onnxruntime') && text.includes(engine.fingerprint))).toHaveLength(1);
  expect(ofType(moved, 'started')[0].data.engine).toContain('tensorflow');
  expect(lossesOf(moved)).toHaveLength(3);
  for (const [i, loss] of lossesOf(moved).entries()) expect(relative(loss, lossesOf(expected)[i])).toBeLessThan(1e-5);
});
