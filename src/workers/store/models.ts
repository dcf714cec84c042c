// Models: a name, a configuration, a tokenizer, and at least one checkpoint, with which the model was committed. The datasets
// are here too: they remember what tokenizing a file gave.

import type Database from 'better-sqlite3';
import { GptdError } from '../../model/errors.ts';
import { readStoredTokenizer } from '../../model/text/stored.ts';
import type { StoredModel } from './messages.ts';
import { checkpointOf, type CheckpointRow } from './checkpoints.ts';
import { hashFromHex } from './chunks.ts';
import { parseColumn, readConfig, readDatasetMeta, readTexts, unlessDamaged } from './rows.ts';
import type { Calls } from './schema.ts';

/** A model's row, joined with the row of its newest checkpoint. */
interface ModelRow extends CheckpointRow {
  readonly name: string;
  readonly config: string;
  readonly tokenizer: string;
  readonly model_created_at: number;
}

const modelOf = (row: ModelRow): StoredModel => ({
  name: row.name,
  config: parseColumn(row.config, `configuration of the model ${row.name}`, readConfig),
  tokenizer: parseColumn(row.tokenizer, `tokenizer of the model ${row.name}`, readStoredTokenizer),
  createdAt: row.model_created_at,
  checkpoint: checkpointOf(row),
});

const SELECT_MODELS = `
  SELECT checkpoints.*, models.name, models.config, models.tokenizer, models.created_at AS model_created_at
  FROM models JOIN checkpoints
    ON checkpoint_id = (SELECT max(checkpoint_id) FROM checkpoints WHERE checkpoints.model = models.name)`;

/** The store's calls about models. `purge` removes the checkpoints that a deleted model leaves. */
export function modelCalls(
  db: Database.Database,
  purge: () => void,
): Calls<'getModel' | 'listModels' | 'setTokenizer' | 'deleteModel' | 'modelFiles'> {
  const selectOne = db.prepare<[string], ModelRow>(`${SELECT_MODELS} WHERE models.name = ?`);
  const selectAll = db.prepare<[], ModelRow>(`${SELECT_MODELS} ORDER BY models.name`);
  const updateTokenizer = db.prepare<[string, string]>('UPDATE models SET tokenizer = ? WHERE name = ?');
  const dropCheckpoints = db.prepare<[string]>('UPDATE checkpoints SET model = NULL WHERE model = ?');
  const remove = db.prepare<[string]>('DELETE FROM models WHERE name = ?');
  const removeMetrics = db.prepare<[string]>('DELETE FROM metrics WHERE model = ?');
  const notFound = (name: string): GptdError => new GptdError('not_found', `There is no model ${name}.`);

  const dropFiles = db.prepare<[string]>('DELETE FROM model_files WHERE model = ?');
  const selectFiles = db.prepare<[string], { name: string; blob: string }>(
    'SELECT name, lower(hex(blob)) AS blob FROM model_files WHERE model = ? ORDER BY name',
  );

  const deleteModel = db.transaction((name: string): void => {
    dropCheckpoints.run(name);
    removeMetrics.run(name);
    dropFiles.run(name);
    if (remove.run(name).changes === 0) throw notFound(name);
  });

  return {
    getModel: ({ name }) => {
      const row = selectOne.get(name);
      if (row === undefined) throw notFound(name);
      return modelOf(row);
    },
    listModels: () => {
      const models = selectAll.all().map((row) => unlessDamaged(() => modelOf(row)));
      return { models: models.filter((model) => model !== null) };
    },
    setTokenizer: ({ name, tokenizer }) => {
      if (updateTokenizer.run(JSON.stringify(tokenizer), name).changes === 0) throw notFound(name);
      return {};
    },
    deleteModel: ({ name }) => {
      deleteModel.immediate(name);
      purge();
      return {};
    },
    modelFiles: ({ name }) => ({ files: selectFiles.all(name) }),
  };
}

/** The store's calls about datasets. */
export function datasetCalls(db: Database.Database): Calls<'getDataset' | 'putDataset'> {
  const select = db.prepare<[string], { key: string; blob: string; meta: string; sources: string }>(
    'SELECT key, lower(hex(blob)) AS blob, meta, sources FROM datasets WHERE key = ?',
  );
  const hasBlob = db.prepare<[Buffer], number>('SELECT 1 FROM blobs WHERE hash = ?').pluck();
  const upsert = db.prepare<[string, Buffer, string, string]>(
    `INSERT INTO datasets (key, blob, meta, sources) VALUES (?, ?, ?, ?)
     ON CONFLICT (key) DO UPDATE SET blob = excluded.blob, meta = excluded.meta, sources = excluded.sources`,
  );
  return {
    getDataset: ({ key }) => {
      const row = select.get(key);
      if (row === undefined) return { dataset: null };
      const dataset = unlessDamaged(() => ({
        key,
        blob: row.blob,
        meta: parseColumn(row.meta, `description of the dataset ${key}`, readDatasetMeta),
        sources: parseColumn(row.sources, `sources of the dataset ${key}`, readTexts),
      }));
      return { dataset };
    },
    putDataset: ({ key, blob, meta, sources }) => {
      const hash = hashFromHex(blob);
      if (hasBlob.get(hash) === undefined) throw new GptdError('not_found', `There is no blob ${blob}.`);
      upsert.run(key, hash, JSON.stringify(meta), JSON.stringify(sources));
      return {};
    },
  };
}
