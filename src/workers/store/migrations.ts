// The steps that take the database from one version of its schema to the next. A checkpoint without a model and a blob without a
// hash are unfinished: nobody sees them, and the next open removes them.

/** Entry i takes a database from version i to i + 1. Entries are never edited once released. */
export const MIGRATIONS: readonly string[] = [
  `
  CREATE TABLE models (
    name TEXT PRIMARY KEY,
    config TEXT NOT NULL,
    tokenizer TEXT NOT NULL,
    created_at INTEGER NOT NULL
  ) STRICT;

  CREATE TABLE checkpoints (
    checkpoint_id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- NULL until the commit, and again from the moment that the checkpoint is dropped.
    model TEXT REFERENCES models (name),
    step INTEGER NOT NULL,
    job_id TEXT NOT NULL,
    digest TEXT,
    bytes INTEGER,
    optimizer INTEGER,
    val_loss REAL,
    meta TEXT,
    created_at INTEGER NOT NULL,
    UNIQUE (model, step)
  ) STRICT;

  CREATE TABLE chunks (
    hash BLOB PRIMARY KEY CHECK (length(hash) = 32),
    data BLOB NOT NULL
  ) STRICT;

  CREATE TABLE checkpoint_chunks (
    checkpoint_id INTEGER NOT NULL REFERENCES checkpoints (checkpoint_id),
    tensor TEXT NOT NULL,
    part TEXT NOT NULL CHECK (part IN ('w', 'm', 'v')),
    offset_bytes INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    hash BLOB NOT NULL REFERENCES chunks (hash),
    PRIMARY KEY (checkpoint_id, part, tensor, offset_bytes)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX checkpoint_chunks_by_hash ON checkpoint_chunks (hash);

  CREATE TABLE blobs (
    blob_id INTEGER PRIMARY KEY AUTOINCREMENT,
    -- NULL while pieces arrive.
    hash BLOB UNIQUE CHECK (length(hash) = 32),
    size_bytes INTEGER,
    created_at INTEGER NOT NULL
  ) STRICT;

  CREATE TABLE blob_chunks (
    blob_id INTEGER NOT NULL REFERENCES blobs (blob_id),
    chunk_index INTEGER NOT NULL,
    offset_bytes INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    hash BLOB NOT NULL REFERENCES chunks (hash),
    PRIMARY KEY (blob_id, chunk_index),
    UNIQUE (blob_id, offset_bytes)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX blob_chunks_by_hash ON blob_chunks (hash);

  CREATE TABLE jobs (
    job_number INTEGER PRIMARY KEY AUTOINCREMENT,
    job_id TEXT NOT NULL UNIQUE,
    key TEXT UNIQUE,
    kind TEXT NOT NULL,
    spec TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at INTEGER NOT NULL,
    started_at INTEGER,
    ended_at INTEGER,
    last_seq INTEGER NOT NULL,
    result TEXT,
    error TEXT
  ) STRICT;
  CREATE INDEX jobs_by_state ON jobs (state);

  CREATE TABLE events (
    job_id TEXT NOT NULL REFERENCES jobs (job_id),
    seq INTEGER NOT NULL,
    at INTEGER NOT NULL,
    type TEXT NOT NULL,
    key TEXT,
    data TEXT NOT NULL,
    PRIMARY KEY (job_id, seq),
    UNIQUE (job_id, key)
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE metrics (
    job_id TEXT NOT NULL REFERENCES jobs (job_id),
    step INTEGER NOT NULL,
    at INTEGER NOT NULL,
    loss REAL,
    lr REAL,
    grad_norm REAL,
    tokens INTEGER,
    tokens_per_second REAL,
    PRIMARY KEY (job_id, step)
  ) STRICT, WITHOUT ROWID;

  CREATE TABLE datasets (
    key TEXT PRIMARY KEY,
    blob BLOB NOT NULL REFERENCES blobs (hash),
    meta TEXT NOT NULL
  ) STRICT;
  `,
  `
  ALTER TABLE jobs ADD COLUMN priority INTEGER NOT NULL DEFAULT 0;
  CREATE INDEX jobs_by_end ON jobs (ended_at);

  -- The curve of a model's training outlives the job that drew it.
  CREATE TABLE metrics_of_models (
    model TEXT NOT NULL,
    job_id TEXT NOT NULL,
    step INTEGER NOT NULL,
    at INTEGER NOT NULL,
    loss REAL,
    lr REAL,
    grad_norm REAL,
    tokens INTEGER,
    tokens_per_second REAL,
    PRIMARY KEY (job_id, step)
  ) STRICT, WITHOUT ROWID;
  INSERT INTO metrics_of_models
    SELECT coalesce(spec ->> '$.model', ''), job_id, step, at, loss, lr, grad_norm, tokens, tokens_per_second
    FROM metrics JOIN jobs USING (job_id);
  DROP TABLE metrics;
  ALTER TABLE metrics_of_models RENAME TO metrics;
  CREATE INDEX metrics_by_model ON metrics (model, step);

  -- Files that are kept with a model; their blobs are in use as long as it is there.
  CREATE TABLE model_files (
    model TEXT NOT NULL REFERENCES models (name),
    name TEXT NOT NULL,
    blob BLOB NOT NULL REFERENCES blobs (hash),
    PRIMARY KEY (model, name)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX model_files_by_blob ON model_files (blob);

  -- The checkpoint that a job works with until it has ended; and whether its turn to be pruned has come meanwhile.
  CREATE TABLE holds (
    job_id TEXT PRIMARY KEY,
    checkpoint_id INTEGER NOT NULL REFERENCES checkpoints (checkpoint_id)
  ) STRICT, WITHOUT ROWID;
  CREATE INDEX holds_by_checkpoint ON holds (checkpoint_id);
  ALTER TABLE checkpoints ADD COLUMN pruned INTEGER NOT NULL DEFAULT 0;

  -- Digests of the files that a dataset was made of, as a JSON array.
  ALTER TABLE datasets ADD COLUMN sources TEXT NOT NULL DEFAULT '[]';

  -- Evaluations stand beside the step that they followed; one before the first step has a row of its own.
  ALTER TABLE metrics ADD COLUMN train_loss REAL;
  ALTER TABLE metrics ADD COLUMN val_loss REAL;
  `,
  `
  -- Quantized matrices are parts of the checkpoint that they were made of: they go with it. When the same weights begin to give
  -- other bytes, a migration has to remove them.
  CREATE TABLE chunks_of_checkpoints (
    checkpoint_id INTEGER NOT NULL REFERENCES checkpoints (checkpoint_id),
    tensor TEXT NOT NULL,
    part TEXT NOT NULL CHECK (part IN ('w', 'm', 'v', 'int8', 'int4')),
    offset_bytes INTEGER NOT NULL,
    size_bytes INTEGER NOT NULL,
    hash BLOB NOT NULL REFERENCES chunks (hash),
    PRIMARY KEY (checkpoint_id, part, tensor, offset_bytes)
  ) STRICT, WITHOUT ROWID;
  INSERT INTO chunks_of_checkpoints SELECT * FROM checkpoint_chunks;
  DROP TABLE checkpoint_chunks;
  ALTER TABLE chunks_of_checkpoints RENAME TO checkpoint_chunks;
  CREATE INDEX checkpoint_chunks_by_hash ON checkpoint_chunks (hash);
  `,
  `
  -- In which order jobs ended: a clock that is set says something else.
  ALTER TABLE jobs ADD COLUMN end_number INTEGER;
  UPDATE jobs SET end_number = ended.number FROM (
    SELECT job_number, row_number() OVER (ORDER BY ended_at, job_number) AS number FROM jobs WHERE ended_at IS NOT NULL
  ) AS ended WHERE jobs.job_number = ended.job_number;
  DROP INDEX jobs_by_end;
  CREATE UNIQUE INDEX jobs_by_end ON jobs (end_number);
  `,
  `
  -- Quantized matrices had a scale for 32 weights, now for 128: they are made again when they are served.
  CREATE TABLE made AS SELECT hash FROM checkpoint_chunks WHERE part IN ('int8', 'int4');
  DELETE FROM checkpoint_chunks WHERE part IN ('int8', 'int4');
  DELETE FROM chunks WHERE hash IN (SELECT hash FROM made)
    AND NOT EXISTS (SELECT 1 FROM checkpoint_chunks WHERE checkpoint_chunks.hash = chunks.hash)
    AND NOT EXISTS (SELECT 1 FROM blob_chunks WHERE blob_chunks.hash = chunks.hash);
  DROP TABLE made;
  `,
];

/** The version of the schema that this program reads and writes. */
export const SCHEMA_VERSION = MIGRATIONS.length;
