// Checkpoints: chunks arrive under a row without a model, which nobody sees; one small transaction names the model and so
// makes the checkpoint visible. Dropping one takes the name away again, in a small transaction too; its chunks then go in
// short ones of their own. A crash between the two leaves what a crash before the commit leaves, and the next open purges both.

import { isDeepStrictEqual } from 'node:util';
import type Database from 'better-sqlite3';
import type { GptConfig } from '../../model/config.ts';
import { weightsDigest, type WeightsDigest } from '../../model/digest.ts';
import { assert, GptdError } from '../../model/errors.ts';
import { tensorBytes, tensorTable, type TensorSpec } from '../../model/tensors.ts';
import type { StoreCalls, StoredCheckpoint, TensorChunk, TensorPart } from './messages.ts';
import { chunkTable, hashFromHex } from './chunks.ts';
import { holdTable } from './holds.ts';
import { damagedColumn, parseColumn, readCheckpointMeta, readConfig, unlessDamaged } from './rows.ts';
import { withoutSync, type Calls } from './schema.ts';

/** One transaction frees the chunks of this many rows, which takes a few milliseconds. */
const PURGED_CHUNKS_PER_TRANSACTION = 8;

export interface CheckpointRow {
  readonly checkpoint_id: number;
  readonly model: string | null;
  readonly step: number;
  readonly job_id: string;
  readonly digest: string | null;
  readonly bytes: number | null;
  readonly optimizer: number | null;
  readonly meta: string | null;
  readonly created_at: number;
}

/** A committed checkpoint. Throws `corrupt` for a row that lacks what the commit wrote. */
export function checkpointOf(row: CheckpointRow): StoredCheckpoint {
  const { model, step, digest, bytes, optimizer, meta } = row;
  const what = `record of the checkpoint of ${model} at step ${step}`;
  if (model === null || digest === null || bytes === null || optimizer === null || meta === null) {
    throw damagedColumn(what, new Error('a column is empty'));
  }
  return {
    checkpointId: row.checkpoint_id,
    model,
    step,
    digest,
    bytes,
    optimizer: optimizer === 1,
    jobId: row.job_id,
    meta: parseColumn(meta, what, readCheckpointMeta),
    createdAt: row.created_at,
  };
}

/** What the store's thread remembers of a checkpoint between its begin and its commit. */
interface Staging {
  readonly model: string;
  readonly step: number;
  readonly jobId: string;
  readonly config: GptConfig;
  readonly digest: WeightsDigest;
  /** The model's tensors by their names, in table order. */
  readonly tensors: ReadonlyMap<string, TensorSpec>;
  /** How many bytes have arrived, by part and tensor. */
  readonly received: Record<TensorPart, Map<string, number>>;
  /** The first attempt to commit sets it, as a digest can be ended only once. */
  summary?: { readonly bytes: number; readonly optimizer: boolean; readonly digest: string };
}

function newStaging(input: Parameters<Calls<'beginCheckpoint'>['beginCheckpoint']>[0]): Staging {
  return {
    ...input,
    digest: weightsDigest(input.config),
    tensors: new Map(tensorTable(input.config).map((tensor) => [tensor.name, tensor])),
    received: { w: new Map(), m: new Map(), v: new Map() },
  };
}

/** Counts the chunk in; a chunk that overlaps, leaves a gap or crosses its tensor's end is a bug of the sender. */
function receive(staging: Staging, { tensor, part, offsetBytes, bytes }: TensorChunk): void {
  const spec = staging.tensors.get(tensor);
  assert(spec !== undefined && isStored(spec, part), `the model has no tensor ${tensor} (${part})`);
  const size = tensorBytes(spec);
  const expected = staging.received[part].get(tensor) ?? 0;
  assert(offsetBytes === expected, `chunk of ${tensor} (${part}) at ${offsetBytes}, expected it at ${expected}`);
  const end = offsetBytes + bytes.length;
  assert(end <= size, `chunk of ${tensor} (${part}) ends at ${end} of ${size} bytes`);
  staging.received[part].set(tensor, end);
  if (part === 'w') staging.digest.update(tensor, bytes);
}

/** Every tensor has weights; only those that are trained have moments. */
const isStored = ({ trained }: TensorSpec, part: TensorPart): boolean => part === 'w' || trained;

function isComplete(staging: Staging, part: TensorPart): boolean {
  return Array.from(staging.tensors.values()).every(
    (spec) => !isStored(spec, part) || staging.received[part].get(spec.name) === tensorBytes(spec),
  );
}

/**
 * Returns the total bytes, whether optimizer state is there, and the digest. All weights must have arrived, and all or no state.
 */
function summarize(staging: Staging): NonNullable<Staging['summary']> {
  assert(isComplete(staging, 'w'), 'the checkpoint lacks weights');
  const optimizer = staging.received.m.size + staging.received.v.size > 0;
  assert(!optimizer || (isComplete(staging, 'm') && isComplete(staging, 'v')), 'the checkpoint lacks optimizer state');
  const sizes = Object.values(staging.received).flatMap((received) => [...received.values()]);
  const bytes = sizes.reduce((sum, size) => sum + size, 0);
  return { bytes, optimizer, digest: staging.digest.digest() };
}

/**
 * Removes every checkpoint without a model, but for those of `keep`, in short transactions, and the chunks that only they
 * named. It runs at open and after whatever drops a checkpoint.
 */
function checkpointPurge(db: Database.Database): (keep: ReadonlySet<number>) => void {
  const chunks = chunkTable(db);
  const holds = holdTable(db);
  const selectDropped = db.prepare<[], number>('SELECT checkpoint_id FROM checkpoints WHERE model IS NULL').pluck();
  const selectSome = db.prepare<[number, number], { part: string; tensor: string; offset_bytes: number; hash: Buffer }>(
    'SELECT part, tensor, offset_bytes, hash FROM checkpoint_chunks WHERE checkpoint_id = ? LIMIT ?',
  );
  const removeRow = db.prepare<[number, string, string, number]>(
    'DELETE FROM checkpoint_chunks WHERE checkpoint_id = ? AND part = ? AND tensor = ? AND offset_bytes = ?',
  );
  const removeCheckpoint = db.prepare<[number]>('DELETE FROM checkpoints WHERE checkpoint_id = ?');
  /** Returns false when nothing of the checkpoint is left. */
  const purgeSome = db.transaction((id: number): boolean => {
    const rows = selectSome.all(id, PURGED_CHUNKS_PER_TRANSACTION);
    for (const row of rows) removeRow.run(id, row.part, row.tensor, row.offset_bytes);
    for (const row of rows) chunks.free(row.hash);
    if (rows.length > 0) return true;
    holds.forget(id);
    removeCheckpoint.run(id);
    return false;
  });
  return (keep) => {
    for (const id of selectDropped.all()) {
      if (keep.has(id)) continue;
      while (purgeSome.immediate(id));
    }
  };
}

type CheckpointCalls = Calls<
  | 'beginCheckpoint'
  | 'putChunks'
  | 'commitCheckpoint'
  | 'abortCheckpoint'
  | 'putMade'
  | 'getCheckpoint'
  | 'listCheckpoints'
>;

interface CheckpointTable extends CheckpointCalls {
  /** Removes whatever is neither visible nor being written. */
  readonly purge: () => void;
  /** Answers StoreCalls.holdCheckpoint. */
  readonly hold: (input: StoreCalls['holdCheckpoint'][0]) => StoredCheckpoint;
}

/** The store's calls about checkpoints. */
export function checkpointCalls(db: Database.Database): CheckpointTable {
  const chunks = chunkTable(db);
  const stagings = new Map<number, Staging>();
  const purgeExcept = checkpointPurge(db);
  const purge = (): void => purgeExcept(new Set(stagings.keys()));
  const holds = holdTable(db);

  const insertCheckpoint = db.prepare<[number, string, number]>(
    'INSERT INTO checkpoints (step, job_id, created_at) VALUES (?, ?, ?)',
  );
  const insertChunk = db.prepare<[number, string, string, number, number, Buffer]>(
    'INSERT INTO checkpoint_chunks (checkpoint_id, tensor, part, offset_bytes, size_bytes, hash) VALUES (?, ?, ?, ?, ?, ?)',
  );
  const isVisible = db
    .prepare<[number], number>('SELECT 1 FROM checkpoints WHERE checkpoint_id = ? AND model IS NOT NULL')
    .pluck();
  const removeChunk = db
    .prepare<[number, string, string, number], Buffer>(
      'DELETE FROM checkpoint_chunks WHERE checkpoint_id = ? AND part = ? AND tensor = ? AND offset_bytes = ? RETURNING hash',
    )
    .pluck();
  const selectConfig = db.prepare<[string], string>('SELECT config FROM models WHERE name = ?').pluck();
  const insertModel = db.prepare<[string, string, string, number]>(
    'INSERT INTO models (name, config, tokenizer, created_at) VALUES (?, ?, ?, ?)',
  );
  const insertFile = db.prepare<[string, string, Buffer]>(
    'INSERT INTO model_files (model, name, blob) VALUES (?, ?, ?)',
  );
  const dropStep = db.prepare<[string, number]>('UPDATE checkpoints SET model = NULL WHERE model = ? AND step = ?');
  const publish = db.prepare<
    [
      {
        id: number;
        model: string;
        digest: string;
        bytes: number;
        optimizer: number;
        valLoss: number | null;
        meta: string;
        at: number;
      },
    ]
  >(
    `UPDATE checkpoints SET model = :model, digest = :digest, bytes = :bytes, optimizer = :optimizer, val_loss = :valLoss,
       meta = :meta, created_at = :at WHERE checkpoint_id = :id`,
  );
  const selectBeyond = db
    .prepare<[string, string, number], number>(
      'SELECT checkpoint_id FROM checkpoints WHERE model = ? AND job_id = ? AND pruned = 0 ORDER BY checkpoint_id DESC LIMIT -1 OFFSET ?',
    )
    .pluck();
  const selectById = db.prepare<[number], CheckpointRow>('SELECT * FROM checkpoints WHERE checkpoint_id = ?');
  const selectStep = db.prepare<[string, number], CheckpointRow>(
    'SELECT * FROM checkpoints WHERE model = ? AND step = ? AND pruned = 0',
  );
  const selectLatest = db.prepare<[string], CheckpointRow>(
    'SELECT * FROM checkpoints WHERE model = ? AND pruned = 0 ORDER BY checkpoint_id DESC LIMIT 1',
  );
  const selectBest = db.prepare<[string], CheckpointRow>(
    `SELECT * FROM checkpoints WHERE model = ? AND pruned = 0 AND val_loss IS NOT NULL ORDER BY val_loss, checkpoint_id DESC LIMIT 1`,
  );
  const selectAll = db.prepare<[string], CheckpointRow>(
    'SELECT * FROM checkpoints WHERE model = ? AND pruned = 0 ORDER BY checkpoint_id',
  );

  function requireStaging(id: number): Staging {
    const staging = stagings.get(id);
    assert(staging !== undefined, `checkpoint ${id} is not being written`);
    return staging;
  }

  function requireModel(name: string): string {
    const config = selectConfig.get(name);
    if (config === undefined) throw new GptdError('not_found', `There is no model ${name}.`);
    return config;
  }

  const configOf = (name: string): GptConfig =>
    parseColumn(requireModel(name), `configuration of the model ${name}`, readConfig);

  const putChunks = db.transaction((id: number, items: readonly TensorChunk[]): void => {
    for (const { tensor, part, offsetBytes, bytes } of items) {
      insertChunk.run(id, tensor, part, offsetBytes, bytes.length, chunks.put(bytes));
    }
  });

  const putMade = db.transaction(({ checkpointId: id, chunks: items }: StoreCalls['putMade'][0]): void => {
    if (isVisible.get(id) === undefined) return;
    for (const { tensor, part, offsetBytes, bytes } of items) {
      // A chunk that is there already was found damaged: it is replaced.
      const old = removeChunk.get(id, part, tensor, offsetBytes);
      insertChunk.run(id, tensor, part, offsetBytes, bytes.length, chunks.put(bytes));
      if (old !== undefined) chunks.free(old);
    }
  });

  const commit = db.transaction((input: Parameters<CheckpointCalls['commitCheckpoint']>[0], staging: Staging): void => {
    const { checkpointId: id, meta, newModel, keepLast } = input;
    const { model, step, jobId, config } = staging;
    const at = Date.now();
    if (newModel !== undefined) {
      assert(
        newModel.name === model && isDeepStrictEqual(newModel.config, config),
        'the checkpoint is of another model',
      );
      if (selectConfig.get(model) !== undefined) {
        throw new GptdError('conflict', `The name ${model} is taken: delete that model first or choose another name.`);
      }
      insertModel.run(model, JSON.stringify(config), JSON.stringify(newModel.tokenizer), at);
      for (const { name, blob } of newModel.files ?? []) insertFile.run(model, name, hashFromHex(blob));
    } else if (!isDeepStrictEqual(configOf(model), config)) {
      throw new GptdError(
        'conflict',
        `The model ${model} was replaced by one of another shape while this job trained it.`,
      );
    }
    dropStep.run(model, step);
    staging.summary ??= summarize(staging);
    const { bytes, optimizer, digest } = staging.summary;
    const { valLoss } = meta;
    publish.run({ id, model, digest, bytes, optimizer: optimizer ? 1 : 0, valLoss, meta: JSON.stringify(meta), at });
    if (keepLast === undefined) return;
    assert(keepLast >= 1, `keepLast is ${keepLast}: it must be at least 1`);
    // The checkpoint just published is the model's newest and always among those kept.
    const best = selectBest.get(model)?.checkpoint_id;
    for (const old of selectBeyond.all(model, jobId, keepLast)) if (old !== best) holds.prune(old);
  });

  function find(model: string, which: number | 'best' | 'latest'): StoredCheckpoint {
    requireModel(model);
    const row =
      which === 'best'
        ? selectBest.get(model)
        : which === 'latest'
          ? selectLatest.get(model)
          : selectStep.get(model, which);
    if (row !== undefined) return checkpointOf(row);
    const what = which === 'best' ? 'checkpoint with a validation loss' : `checkpoint of step ${which}`;
    throw new GptdError('not_found', `The model ${model} has no ${what}.`);
  }

  const hold = db.transaction(({ jobId, model, which }: StoreCalls['holdCheckpoint'][0]) => {
    const held = holds.of(jobId);
    if (held !== undefined) return checkpointOf(selectById.get(held)!);
    const checkpoint = find(model, which);
    holds.add(jobId, checkpoint.checkpointId);
    return checkpoint;
  });

  return {
    purge,
    // The job's first event about the checkpoint comes later and waits for the disk, so this transaction need not.
    hold: (input) => withoutSync(db, () => hold.immediate(input)),
    beginCheckpoint: (input) => {
      const staging = newStaging(input);
      const id = Number(insertCheckpoint.run(input.step, input.jobId, Date.now()).lastInsertRowid);
      stagings.set(id, staging);
      return { checkpointId: id };
    },
    putChunks: ({ checkpointId, chunks: items }) => {
      const staging = requireStaging(checkpointId);
      putChunks.immediate(checkpointId, items);
      // The chunks are counted when they are stored: a full disk leaves the count as it was, and the call may be repeated.
      for (const item of items) receive(staging, item);
      return {};
    },
    commitCheckpoint: (input) => {
      const staging = requireStaging(input.checkpointId);
      commit.immediate(input, staging);
      stagings.delete(input.checkpointId);
      const checkpoint = checkpointOf(selectById.get(input.checkpointId)!);
      purge();
      return { checkpoint };
    },
    abortCheckpoint: ({ checkpointId }) => {
      stagings.delete(checkpointId);
      purge();
      return {};
    },
    putMade: (input) => {
      putMade.immediate(input);
      return {};
    },
    getCheckpoint: ({ model, which }) => find(model, which),
    listCheckpoints: ({ model }) => {
      requireModel(model);
      // A damaged record hides no other one: an older checkpoint may be what is needed.
      const rows = selectAll.all(model);
      const whole = rows.map((row) => unlessDamaged(() => checkpointOf(row))).filter((row) => row !== null);
      return { checkpoints: whole.length > 0 ? whole : rows.map(checkpointOf) };
    },
  };
}
