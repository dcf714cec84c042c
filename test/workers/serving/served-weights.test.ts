// Checks that quantized matrices are made once. They are kept with the checkpoint of their weights, checked when they are read,
// made again one by one where they are damaged, and deleted with the checkpoint.

import path from 'node:path';
import Database from 'better-sqlite3';
import { onTestFinished, expect, test } from 'vitest';
import { quantize, QUANTIZATIONS, type Quantization } from '../../../src/model/programs/quantize.ts';
import { tensorTable } from '../../../src/model/tensors.ts';
import { openReader } from '../../../src/workers/store/reader.ts';
import { servedWeights, type ServedWeights } from '../../../src/workers/serving/served-weights.ts';
import type { Store } from '../../../src/workers/store/thread.ts';
import { countRows, numbers, openedStore, TINY, writeCheckpoint } from '../store/fixture.ts';

/** The matrices that are quantized: four in each block, and the head. */
const MATRICES = tensorTable(TINY).filter(({ matrix, place }) => matrix && place !== 'embedding');

interface Opened {
  readonly store: Store;
  readonly dataDir: string;
  readonly checkpointId: number;
  readonly open: () => ServedWeights;
}

function openedModel(): Opened {
  const { store, dataDir } = openedStore();
  const { checkpointId } = writeCheckpoint(store, { step: 0, create: true });
  const reader = openReader(dataDir);
  onTestFinished(() => reader.close());
  return { store, dataDir, checkpointId, open: () => servedWeights(reader, { checkpointId, config: TINY }) };
}

const shapeOf = ({ shape: [rows, columns], place }: (typeof MATRICES)[number]): { K: number; N: number } =>
  place === 'head' ? { K: columns, N: rows } : { K: rows, N: columns };

/** Returns the bytes of every matrix, in table order. */
const ask = (weights: ServedWeights, quantization: Quantization): Uint8Array[] =>
  MATRICES.map(
    (spec) =>
      weights.quantized!(spec.name, { ...shapeOf(spec), quantization, transposed: spec.place === 'head' }).bytes,
  );

const chunkCount = ({ dataDir }: Opened): number => countRows(dataDir, 'SELECT count(*) FROM chunks');

test.each(QUANTIZATIONS)('%s matrices are made once, and stay the same', (quantization) => {
  const model = openedModel();
  const first = model.open();
  const bytes = ask(first, quantization);
  for (const [i, spec] of MATRICES.entries()) {
    const weight = numbers(spec.size, { seed: 0, name: `w${spec.name}` });
    const shape = { ...shapeOf(spec), quantization, transposed: spec.place === 'head' };
    expect(bytes[i]).toEqual(quantize(weight, shape).bytes);
  }
  const made = first.made();
  expect(made.map(({ tensor }) => tensor)).toEqual(MATRICES.map(({ name }) => name));
  expect(MATRICES).toHaveLength(9);
  model.store.putMade({ checkpointId: model.checkpointId, chunks: made });

  const second = model.open();
  expect(ask(second, quantization)).toEqual(bytes);
  expect(second.made()).toEqual([]);
});

test('a matrix that is damaged or missing is made again, and no other', () => {
  const model = openedModel();
  const { store, dataDir, checkpointId } = model;
  const before = model.open();
  const bytes = ask(before, 'int8');
  store.putMade({ checkpointId, chunks: before.made() });
  const count = chunkCount(model);

  const db = new Database(path.join(dataDir, 'gptd.db'));
  const of = `checkpoint_chunks WHERE part = 'int8' AND tensor`;
  db.exec(
    `UPDATE chunks SET data = zeroblob(length(data)) WHERE hash = (SELECT hash FROM ${of} = 'h.1.mlp.c_fc.weight')`,
  );
  db.exec(`DELETE FROM ${of} = 'h.0.attn.c_attn.weight'`);
  db.exec(`UPDATE checkpoint_chunks SET hash = (SELECT hash FROM ${of} = 'h.0.mlp.c_fc.weight')
    WHERE part = 'int8' AND tensor = 'lm_head.weight'`);
  db.close();

  const after = model.open();
  expect(ask(after, 'int8')).toEqual(bytes);
  const made = after.made();
  expect(made.map(({ tensor }) => tensor).sort()).toEqual([
    'h.0.attn.c_attn.weight',
    'h.1.mlp.c_fc.weight',
    'lm_head.weight',
  ]);
  store.putMade({ checkpointId, chunks: made });
  const whole = model.open();
  expect(ask(whole, 'int8')).toEqual(bytes);
  expect(whole.made()).toEqual([]);
  expect(chunkCount(model)).toBe(count);
});

test('matrices are deleted with their checkpoint, and none is kept for a deleted checkpoint', () => {
  const model = openedModel();
  const [weights, late] = [model.open(), model.open()];
  for (const quantization of QUANTIZATIONS) ask(weights, quantization);
  model.store.putMade({ checkpointId: model.checkpointId, chunks: weights.made() });
  ask(late, 'int4');
  model.store.deleteModel({ name: 'm' });
  expect(chunkCount(model)).toBe(0);
  expect(late.made()).toEqual([]);
  model.store.putMade({
    checkpointId: model.checkpointId,
    chunks: [{ tensor: 'lm_head.weight', part: 'int8', offsetBytes: 0, bytes: Uint8Array.of(1, 2, 3) }],
  });
  expect(chunkCount(model)).toBe(0);
});
