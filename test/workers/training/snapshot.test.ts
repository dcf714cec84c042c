// Checks that a snapshot of a training stage keeps its values while the optimizer goes on, however little room it has.

import { expect, test } from 'vitest';
import { initialTensors } from '../../../src/model/init.ts';
import { onnxEngine } from '../../../src/workers/engines/onnx.ts';
import { CHUNK_SIZE, type ChunkAddress, type TensorPart } from '../../../src/workers/store/messages.ts';
import { updateUnits, type UpdateUnit } from '../../../src/workers/training/messages.ts';
import { ArrayPool } from '../../../src/workers/memory/reuse.ts';
import { Snapshot } from '../../../src/workers/training/snapshot.ts';
import { TrainStage } from '../../../src/workers/training/stage.ts';
import { TINY } from '../store/fixture.ts';

const ADAMW = { lr: 0.1, weightDecay: 0.1, gradScale: 1, beta1: 0.9, beta2: 0.999, eps: 1e-8 };
const RANGE = { firstBlock: 0, endBlock: TINY.n_layers, embeds: true, head: true };
const PARTS: readonly TensorPart[] = ['w', 'm', 'v'];

/** A model with tensors of two chunks. */
const TALL = { ...TINY, vocab_size: CHUNK_SIZE / TINY.emb_dim + 5 };

/** TINY or TALL on one stage, with everything that a step needs. */
class TinyRun {
  readonly stage: TrainStage;
  #step = 0;
  readonly #updated = new Set<UpdateUnit>();

  constructor(config = TINY) {
    const initial = new Map(
      [...initialTensors(config, { seed: 3, scheme: 'gpt2' })].map(({ name, data }) => [name, data]),
    );
    const tokens = new SharedArrayBuffer(400);
    new Uint16Array(tokens).forEach((_, i, ids) => (ids[i] = (i * 7) % TINY.vocab_size));
    this.stage = new TrainStage(
      onnxEngine,
      {
        config,
        batchSize: 2,
        microBatchSize: 2,
        contextLength: 8,
        seed: 1,
        tokens,
        wideTokens: false,
        optimizerState: false,
        stage: RANGE,
      },
      ({ name }, _, into) => into.set(initial.get(name)!),
    );
  }

  /** Runs a step up to its update. */
  async gradients(): Promise<void> {
    this.#step += 1;
    const micro = { index: 0, step: this.#step, firstSequence: 0, starts: [this.#step, 3 * this.#step] };
    await this.stage.forward(micro, this.stage.embed(micro, { train: true }));
    const dx = await this.stage.backward(micro, null);
    await this.stage.allWeightGradients(micro);
    this.stage.embedBackward(micro, dx);
    this.stage.finish();
  }

  /** Updates unit by unit. Returns false when it must wait for the reader; the next call goes on there. */
  update(): boolean {
    const request = { step: { ...ADAMW, step: this.#step }, decayAll: false };
    for (const unit of updateUnits(RANGE)) {
      if (this.#updated.has(unit)) continue;
      if (!this.stage.optimizer.update(request, unit)) return false;
      this.#updated.add(unit);
    }
    this.#updated.clear();
    return true;
  }

  addresses(): ChunkAddress[] {
    return PARTS.flatMap((part) =>
      [...this.stage.parameters.values()].flatMap(({ spec: { name, size } }) =>
        Array.from({ length: Math.ceil(size / CHUNK_SIZE) }, (_, i) => {
          const start = i * CHUNK_SIZE;
          return { tensor: name, part, start, count: Math.min(CHUNK_SIZE, size - start) };
        }),
      ),
    );
  }

  state(): Float32Array[] {
    return this.addresses().map(({ tensor, part, start, count }) =>
      this.stage.parameters.get(tensor)![part].slice(start, start + count),
    );
  }

  read(addresses: readonly ChunkAddress[]): Float32Array[] {
    const into = new Float32Array(addresses.reduce((sum, { count }) => sum + count, 0));
    this.stage.optimizer.readSnapshot(addresses, into);
    let end = 0;
    return addresses.map(({ count }) => into.slice(end, (end += count)));
  }
}

test('a snapshot that is read after two more updates has the values with which it began', async () => {
  const run = new TinyRun();
  await run.gradients();
  expect(run.update()).toBe(true);
  const before = run.state();
  run.stage.optimizer.beginSnapshot({ keptBytesMax: Infinity });
  for (let step = 0; step < 2; step++) {
    await run.gradients();
    expect(run.update()).toBe(true);
  }
  expect(run.state()).not.toEqual(before);
  expect(run.read(run.addresses())).toEqual(before);
});

test('without room the update waits for the reader, tensor by tensor, and ends with the same bits', async () => {
  const [free, tight] = [new TinyRun(), new TinyRun()];
  for (const run of [free, tight]) await run.gradients();
  const before = tight.state();
  tight.stage.optimizer.beginSnapshot({ keptBytesMax: 0 });
  expect(tight.update()).toBe(false);
  const chunks: Float32Array[] = [];
  let calls = 1;
  for (const address of tight.addresses()) {
    chunks.push(...tight.read([address]));
    calls += 1;
    if (tight.update()) break;
  }
  // The second moment of the last tensor is read last.
  expect(calls).toBe(tight.addresses().length + 1);
  expect(chunks).toEqual(before);
  tight.stage.optimizer.endSnapshot();
  expect(free.update()).toBe(true);
  expect(tight.state()).toEqual(free.state());
});

test('a tensor of several chunks is updated chunk by chunk as they are read, with the same bits', async () => {
  const [free, tight] = [new TinyRun(TALL), new TinyRun(TALL)];
  for (const run of [free, tight]) await run.gradients();
  const bits = (arrays: readonly Float32Array[]): Buffer =>
    Buffer.concat(arrays.map(({ buffer }) => Buffer.from(buffer)));
  const addresses = tight.addresses();
  const later = addresses.filter(({ start }) => start > 0);
  expect(later).toHaveLength(2 * PARTS.length);
  const before = bits(tight.state());
  tight.stage.optimizer.beginSnapshot({ keptBytesMax: 0 });
  const first = addresses.filter(({ start }) => start === 0);
  const chunks = new Map(first.map((address) => [address, tight.read([address])[0]]));
  // The update gets up to the first tensor's second chunk.
  expect(tight.update()).toBe(false);
  for (const address of later) chunks.set(address, tight.read([address])[0]);
  expect(tight.update()).toBe(true);
  expect(bits(addresses.map((address) => chunks.get(address)!)).equals(before)).toBe(true);
  tight.stage.optimizer.endSnapshot();
  expect(free.update()).toBe(true);
  expect(bits(tight.state()).equals(bits(free.state()))).toBe(true);
});

test('a snapshot that was not read to its end blocks no update once it has ended', async () => {
  const run = new TinyRun();
  await run.gradients();
  run.stage.optimizer.beginSnapshot({ keptBytesMax: 0 });
  expect(run.update()).toBe(false);
  run.stage.optimizer.endSnapshot();
  expect(run.update()).toBe(true);
});

test('a snapshot is whole when half of it is read before the update, which sets the other half aside', async () => {
  const run = new TinyRun();
  const addresses = run.addresses();
  await run.gradients();
  const before = run.state();
  run.stage.optimizer.beginSnapshot({ keptBytesMax: Infinity });
  const half = addresses.length / 2;
  const early = run.read(addresses.slice(half));
  expect(run.update()).toBe(true);
  expect([...run.read(addresses.slice(0, half)), ...early]).toEqual(before);
});

test('a snapshot copies into the memory of chunks that have been read', () => {
  const arrays = new ArrayPool();
  const snapshot = new Snapshot({ keptBytesMax: 16, arrays });
  const address: ChunkAddress = { tensor: 't', part: 'w', start: 0, count: 2 };
  const [live, free] = [Float32Array.of(1, 2), Float32Array.of(0, 0)];
  arrays.give(free);
  expect(snapshot.release(address, live)).toBe(true);
  expect(free).toEqual(Float32Array.of(1, 2));
  snapshot.read(address, { live, into: new Float32Array(2) });
  expect(arrays.take(2)).toBe(free);
});

test('a snapshot sets aside no more bytes than it may, and makes room as chunks are read', () => {
  const snapshot = new Snapshot({ keptBytesMax: 16, arrays: new ArrayPool() });
  const live = Float32Array.of(1, 2, 3, 4, 5, 6);
  const address = (start: number): ChunkAddress => ({ tensor: 't', part: 'w', start, count: 2 });
  expect([0, 2, 4].map((start) => snapshot.release(address(start), live))).toEqual([true, true, false]);
  live.fill(0, 0, 4);
  const read = (start: number): number[] => {
    const into = new Float32Array(2);
    snapshot.read(address(start), { live, into });
    return [...into];
  };
  expect(read(0)).toEqual([1, 2]);
  expect(snapshot.release(address(4), live)).toBe(true);
  live.fill(0);
  expect([2, 4].map(read)).toEqual([
    [3, 4],
    [5, 6],
  ]);
  // This chunk was read before it is overwritten, so nothing is set aside.
  expect(snapshot.release(address(0), live)).toBe(true);
});
