// Checks the order in which a snapshot is read: everything is read once, weights come in the order of their digest, and no group
// is larger than the limit.

import { expect, test } from 'vitest';
import { PRESETS, resolveConfig } from '../../../src/model/config.ts';
import { tensorTable } from '../../../src/model/tensors.ts';
import { checkpointDue } from '../../../src/daemon/models/checkpoints.ts';
import { planStages } from '../../../src/daemon/threads/plan.ts';
import { chunksIn, GroupBuffers, readGroups, snapshotGroups } from '../../../src/daemon/training/snapshot.ts';

test.each([1, 2, 4])('with %i stages every element is read once, weights in table order', (workers) => {
  const config = resolveConfig('GPT_CONFIG_124M');
  expect(config).toEqual(PRESETS.GPT_CONFIG_124M);
  const groups = snapshotGroups(config, planStages(config, workers));
  const addresses = groups.flatMap((group) => group.addresses);
  for (const part of ['w', 'm', 'v'] as const) {
    const ends = new Map<string, number>();
    const order: string[] = [];
    for (const { tensor, start, count } of addresses.filter((address) => address.part === part)) {
      expect(start).toBe(ends.get(tensor) ?? 0);
      if (start === 0) order.push(tensor);
      ends.set(tensor, start + count);
    }
    const table = tensorTable(config);
    expect(ends).toEqual(new Map(table.map(({ name, size }) => [name, size])));
    const names = table.map(({ name }) => name);
    expect(order).toEqual(part === 'w' ? names : names.toReversed());
  }
  for (const group of groups) {
    expect(group.addresses.reduce((sum, { count }) => sum + 4 * count, 0)).toBeLessThanOrEqual(16 << 20);
  }
});

test('only trained tensors have moments that are read', () => {
  const config = resolveConfig('GPT_CONFIG_124M');
  const isTrained = (name: string): boolean => name.includes('.ln_2.');
  const groups = snapshotGroups(config, planStages(config, 2), { isTrained });
  const tensors = (wanted: string): Set<string> =>
    new Set(
      groups.flatMap(({ addresses }) => addresses.filter(({ part }) => part === wanted).map(({ tensor }) => tensor)),
    );
  const names = tensorTable(config).map(({ name }) => name);
  expect(tensors('w')).toEqual(new Set(names));
  for (const part of ['m', 'v']) expect(tensors(part)).toEqual(new Set(names.filter(isTrained)));
});

test('groups come in order through a few buffers, each of which is used again when it is given back', async () => {
  const config = resolveConfig('GPT_CONFIG_124M');
  const groups = snapshotGroups(config, planStages(config, 2));
  const buffers = new GroupBuffers(groups);
  const reads: SharedArrayBuffer[] = [];
  const read = readGroups(groups, async (group) => {
    const buffer = await buffers.take();
    reads.push(buffer);
    return chunksIn(buffer, group);
  });
  let count = 0;
  for await (const chunks of read) {
    const ends = chunks.map(({ bytes }) => bytes.byteOffset + bytes.length);
    expect(chunks.map(({ bytes }) => bytes.byteOffset)).toEqual([0, ...ends.slice(0, -1)]);
    const told = chunks.map(({ tensor, part, offsetBytes, bytes }) => {
      return { tensor, part, start: offsetBytes / 4, count: bytes.length / 4 };
    });
    expect(told).toEqual(groups[count].addresses);
    expect(chunks.every(({ bytes }) => bytes.buffer === reads[count])).toBe(true);
    count += 1;
    buffers.give(reads[count - 1]);
  }
  expect(count).toBe(groups.length);
  expect(new Set(reads).size).toBeLessThanOrEqual(6);
});

test('a caller that waits gets the next buffer that is given back, and a reclaim gives all of them back at once', async () => {
  const config = resolveConfig('GPT_CONFIG_124M');
  const buffers = new GroupBuffers(snapshotGroups(config, planStages(config, 2)));
  const taken = new Set<SharedArrayBuffer>();
  const take = async (): Promise<SharedArrayBuffer | null> =>
    await Promise.race([buffers.take(), new Promise<null>((resolve) => setImmediate(resolve, null))]);
  // The last of these requests finds no buffer and waits.
  for (let next = await take(); next !== null; next = await take()) taken.add(next);
  const [first] = taken;
  const waiting = buffers.take();
  for (let i = 0; i < 2; i++) buffers.give(first);
  expect(await waiting).toBe(first);
  buffers.reclaim();
  const again = await Promise.all([...taken].map(() => buffers.take()));
  expect(new Set(again)).toEqual(taken);
});

test('the buffers of a small model are no larger and no more than its groups', async () => {
  const config = {
    ...resolveConfig('GPT_CONFIG_124M'),
    vocab_size: 64,
    context_length: 8,
    emb_dim: 8,
    n_heads: 2,
    n_layers: 2,
  };
  const groups = snapshotGroups(config, planStages(config, 2));
  expect(groups.length).toBeLessThan(6);
  const buffers = new GroupBuffers(groups);
  const taken = await Promise.all(groups.map(() => buffers.take()));
  const largest = Math.max(...groups.map(({ addresses }) => addresses.reduce((sum, { count }) => sum + 4 * count, 0)));
  expect(taken.map(({ byteLength }) => byteLength)).toEqual(groups.map(() => largest));
  const more = await Promise.race([buffers.take(), new Promise((resolve) => setImmediate(resolve, null))]);
  expect(more).toBeNull();
});

test('a checkpoint is due by steps or by the clock, and by the clock only while none is being written', () => {
  const now = { done: 6, sinceMs: 59_999, busy: false };
  expect(checkpointDue(3, now)).toBe(true);
  expect(checkpointDue(3, { ...now, busy: true })).toBe(true);
  expect(checkpointDue(4, now)).toBe(false);
  expect(checkpointDue(0, { ...now, sinceMs: 1e9 })).toBe(false);
  expect(checkpointDue(undefined, now)).toBe(false);
  expect(checkpointDue(undefined, { ...now, sinceMs: 60_000 })).toBe(true);
  expect(checkpointDue('59s', now)).toBe(true);
  expect(checkpointDue('59s', { ...now, busy: true })).toBe(false);
  expect(checkpointDue('61s', now)).toBe(false);
});
