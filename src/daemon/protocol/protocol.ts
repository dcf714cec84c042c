// The whole wire contract: JSON-RPC methods, job specs, job events, errors and limits. The server, the CLI and any other
// client agree on this and nothing else; what is about training, generation and files of weights is in files of its own
// and handed on from here. Unknown keys are refused. It is not about threads: see workers/messages.ts.

import { z } from 'zod';
import { CONFIG_MAX, PRESET_NAMES, type GptConfig, type PresetName } from '../../model/config.ts';
import { ERROR_CODES, type ErrorData } from '../../model/errors.ts';
import {
  integer,
  LIMITS,
  modelName,
  modelReference,
  seed,
  TOKENIZERS,
  type ModelTokenizerName,
} from './spec-fields.ts';
import { exportSpec, importSpec } from './interchange.ts';
import {
  evaluateSpec,
  historyParams,
  trainSpec,
  type DatasetReport,
  type HistoryResult,
  type VerifyResult,
} from './training.ts';
import { generateSpec, type TokenData } from './generation.ts';

export { ERROR_CODES, errorData, GptdError, type ErrorCode, type ErrorData } from '../../model/errors.ts';
export {
  DATA_FORMATS,
  LIMITS,
  MODEL_NAME_PATTERN,
  TOKENIZERS,
  type DataFormat,
  type ModelTokenizerName,
  type TokenizerName,
} from './spec-fields.ts';
export {
  EXPORT_FORMATS,
  EXPORT_TYPES,
  SHARD_PATTERN,
  TOKENIZER_FILES,
  WEIGHTS_FILE,
  WEIGHTS_INDEX_FILE,
  type ExportedFile,
  type ExportFormat,
  type ExportResult,
  type ExportType,
  type InspectedFile,
  type Inspection,
} from './interchange.ts';
export {
  evaluateSpec,
  trainSpec,
  type DatasetReport,
  type EvaluateResult,
  type Evaluation,
  type HistoryPoint,
  type HistoryResult,
  type TrainResult,
  type VerifyResult,
} from './training.ts';
export {
  generateSpec,
  type GeneratedSample,
  type GenerateResult,
  type TokenData,
  type TokenLogprob,
} from './generation.ts';
export { SCHEDULES, type ScheduleName } from '../../model/schedule.ts';
export {
  CONFIG_MAX,
  DEFAULT_PRESET,
  PRESET_NAMES,
  PRESETS,
  resolveConfig,
  type GptConfig,
} from '../../model/config.ts';

export const VERSION = '0.1.0';
export const SUBPROTOCOL = 'gptd.v1';
/** A browser cannot set headers on a WebSocket: it offers `bearer.<token>` as a second subprotocol. */
export const BEARER_SUBPROTOCOL_PREFIX = 'bearer.';
export const DEFAULT_HOST = '127.0.0.1';
export const DEFAULT_PORT = 7433;
export const WEBSOCKET_PATH = '/v1/ws';

/** How much the daemon's log tells: everything from this level up. */
export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const;
export type LogLevel = (typeof LOG_LEVELS)[number];

/** Exit codes of the CLI and of the daemon. */
export const EXIT = {
  ok: 0,
  jobFailed: 1,
  usage: 2,
  noDaemon: 69,
  dataDirInUse: 75,
  unsafeConfiguration: 78,
  cancelled: 130,
} as const;

// ---- Job specs -------------------------------------------------------------------------------------------------------

const configField = (name: keyof typeof CONFIG_MAX): z.ZodOptional<z.ZodNumber> =>
  integer(1, CONFIG_MAX[name]).optional();
/** A preset's name, or fields over those of GPT_CONFIG_124M. */
const config = z.union([
  z.enum(PRESET_NAMES as readonly [PresetName, ...PresetName[]]),
  z.strictObject({
    vocab_size: configField('vocab_size'),
    context_length: configField('context_length'),
    emb_dim: configField('emb_dim'),
    n_heads: configField('n_heads'),
    n_layers: configField('n_layers'),
    drop_rate: z.number().min(0).lt(1).optional(),
    qkv_bias: z.boolean().optional(),
    tie_weights: z.boolean().optional(),
  }),
]);

export const paramsSpec = z.strictObject({ config: config.default('GPT_CONFIG_124M') });

export const createSpec = z.strictObject({
  model: modelName,
  config: config.default('GPT_CONFIG_124M'),
  seed,
  init: z.enum(['torch', 'gpt2']).default('torch'),
  tokenizer: z.enum(TOKENIZERS).optional(),
});

export const JOB_SPECS = {
  params: paramsSpec,
  create: createSpec,
  train: trainSpec,
  generate: generateSpec,
  evaluate: evaluateSpec,
  import: importSpec,
  export: exportSpec,
} as const;

export type JobKind = keyof typeof JOB_SPECS;
export const JOB_KINDS = Object.keys(JOB_SPECS) as JobKind[];
/** Specs with every default filled in, as jobs are stored. */
export type JobSpecs = { readonly [K in JobKind]: z.output<(typeof JOB_SPECS)[K]> };
/** Specs as a client writes them. */
export type JobSpecInputs = { readonly [K in JobKind]: z.input<(typeof JOB_SPECS)[K]> };
export type TrainSpec = JobSpecs['train'];
export type GenerateSpec = JobSpecs['generate'];

// ---- Jobs and events -------------------------------------------------------------------------------------------------

export const JOB_STATES = ['queued', 'running', 'paused', 'succeeded', 'failed', 'cancelled'] as const;
export type JobState = (typeof JOB_STATES)[number];
export type TerminalState = 'succeeded' | 'failed' | 'cancelled';
export const isTerminal = (state: string): state is TerminalState =>
  state === 'succeeded' || state === 'failed' || state === 'cancelled';

/** What may follow a state. A job whose daemon ended while it ran is queued again by the next one; nothing follows an end. */
export const JOB_TRANSITIONS: Readonly<Record<JobState, readonly JobState[]>> = {
  queued: ['running', 'paused', 'cancelled'],
  running: ['queued', 'paused', 'succeeded', 'failed', 'cancelled'],
  paused: ['queued', 'cancelled'],
  succeeded: [],
  failed: [],
  cancelled: [],
};

/** A job as `job.get` and `job.list` show it. Times are milliseconds since 1970. */
export interface JobRecord {
  readonly jobId: string;
  readonly kind: JobKind;
  readonly state: JobState;
  readonly spec: unknown;
  readonly priority: number;
  readonly createdAt: number;
  readonly startedAt: number | null;
  readonly endedAt: number | null;
  readonly lastSeq: number;
  readonly result: unknown;
  readonly error: ErrorData | null;
}

/** What a job says while it lives. Exactly one of `succeeded`, `failed`, `cancelled` ends it. */
export type JobEventBody =
  | { readonly type: 'queued'; readonly data: { readonly kind: JobKind } }
  | { readonly type: 'started'; readonly data: { readonly workers: number; readonly engine: string } }
  | {
      readonly type: 'progress';
      readonly data: { readonly phase: string; readonly done: number; readonly total: number; readonly unit: string };
    }
  | {
      readonly type: 'step';
      readonly data: {
        readonly step: number;
        readonly steps: number;
        readonly loss: number;
        readonly lr: number;
        readonly gradNorm: number;
        /** Tokens trained on so far in this job. */
        readonly tokens: number;
        readonly tokensPerSecond: number;
        readonly etaMs: number;
      };
    }
  | {
      readonly type: 'eval';
      readonly data: {
        readonly step: number;
        readonly trainLoss: number;
        /** null without a validation split. */
        readonly valLoss: number | null;
        readonly perplexity: number | null;
      };
    }
  | {
      readonly type: 'sample';
      readonly data: {
        readonly step: number;
        readonly prompt: string;
        /** What the model wrote behind the prompt; without a tokenizer its ids. */
        readonly text: string;
        readonly ids: readonly number[];
      };
    }
  | { readonly type: 'checkpoint'; readonly data: { readonly step: number; readonly digest: string } }
  | { readonly type: 'token'; readonly data: TokenData }
  | {
      readonly type: 'log';
      /** `step` and `digest` name the checkpoint that a generation works with. */
      readonly data: {
        readonly message: string;
        readonly step?: number;
        readonly digest?: string;
        /** What a training says of its data. */
        readonly dataset?: DatasetReport;
      };
    }
  | { readonly type: 'succeeded'; readonly data: { readonly result: unknown } }
  | { readonly type: 'failed'; readonly data: { readonly error: ErrorData } }
  | { readonly type: 'cancelled'; readonly data: Record<string, never> };

/** One stored event. `seq` is contiguous from 1 within its job; `at` is milliseconds since 1970. */
export type JobEvent = JobEventBody & { readonly jobId: string; readonly seq: number; readonly at: number };

// ---- Results ---------------------------------------------------------------------------------------------------------

/** Exact counts of parameters; bytes under `memory`; the stages that the daemon's workers would get under `plan`. */
export interface ParamsResult {
  readonly config: GptConfig;
  readonly token_embeddings: number;
  readonly position_embeddings: number;
  readonly embedding_total: number;
  readonly mha_per_block: number;
  readonly ff_per_block: number;
  readonly layernorm_per_block: number;
  readonly params_per_block: number;
  readonly transformer_blocks_total: number;
  readonly final_layernorm: number;
  /** 0 when tied: the matrix is counted once, as token_embeddings. */
  readonly output_projection: number;
  readonly total_params: number;
  readonly memory: {
    readonly weightsBytes: number;
    readonly optimizerBytes: number;
    readonly servingBytes: number;
    readonly trainingBytes: number;
  };
  readonly plan: readonly PlanStage[];
}

/** A contiguous range of blocks [firstBlock, endBlock) on one worker thread. */
export interface PlanStage {
  readonly worker: number;
  readonly firstBlock: number;
  readonly endBlock: number;
  readonly embeds: boolean;
  readonly head: boolean;
  readonly params: number;
}

export interface ModelRecord {
  readonly name: string;
  readonly config: GptConfig;
  readonly parameters: number;
  readonly tokenizer: ModelTokenizerName | null;
  /** Step and digest of the newest checkpoint. */
  readonly step: number;
  readonly digest: string;
  readonly createdAt: number;
}

export interface CheckpointRecord {
  readonly model: string;
  readonly step: number;
  readonly digest: string;
  readonly bytes: number;
  readonly optimizer: boolean;
  readonly loss: number | null;
  readonly valLoss: number | null;
  readonly createdAt: number;
}

/** Of `create` and `import`. */
export interface CreateResult {
  readonly model: string;
  readonly step: number;
  readonly digest: string;
  readonly parameters: number;
}

export interface DaemonStatus {
  readonly version: string;
  readonly pid: number;
  readonly engine: {
    readonly name: string;
    /** What it computes with: `cpu`, `node` or `wasm`. */
    readonly backend: string;
    readonly version: string;
    readonly fingerprint: string;
  };
  readonly workers: number;
  readonly uptimeMs: number;
  readonly queue: {
    readonly queued: number;
    readonly running: number;
    readonly paused: number;
    readonly limit: number;
  };
  readonly memory: { readonly rssBytes: number; readonly budgetBytes: number };
}

// ---- JSON-RPC --------------------------------------------------------------------------------------------------------

const jobId = z.string().regex(/^[A-Za-z0-9_-]{1,64}$/, 'a job id is 1 to 64 letters, digits, dashes or underscores');
const byJob = z.strictObject({ jobId });

/** Parameters of every method. */
export const METHODS = {
  'daemon.status': z.strictObject({}).default({}),
  'job.submit': z.strictObject({
    kind: z.enum(JOB_KINDS as [JobKind, ...JobKind[]]),
    spec: z.record(z.string(), z.unknown()),
    /** Same key, same job, as long as the job is kept: a client that lost its connection may submit again. */
    key: z.string().min(1).max(256).optional(),
    /** Larger is sooner; jobs of equal priority run in order of submission. */
    priority: integer(-LIMITS.priorityMax, LIMITS.priorityMax).default(0),
  }),
  'job.subscribe': z.strictObject({ jobId, after: integer(0, 2 ** 53 - 1).default(0) }),
  'job.unsubscribe': byJob,
  'job.get': byJob,
  'job.list': z
    .strictObject({
      state: z.enum(JOB_STATES).optional(),
      kind: z.enum(JOB_KINDS as [JobKind, ...JobKind[]]).optional(),
      /** Without it only jobs that have not ended. */
      all: z.boolean().default(true),
      limit: integer(1, LIMITS.listMax).default(100),
      /** Only jobs that were submitted before this one. */
      before: jobId.optional(),
    })
    .default({ all: true, limit: 100 }),
  'job.cancel': byJob,
  'job.pause': byJob,
  'job.resume': byJob,
  'model.list': z.strictObject({}).default({}),
  'model.get': z.strictObject({ model: modelReference }),
  'model.delete': z.strictObject({ model: modelName }),
  'model.history': historyParams,
  'model.verify': z.strictObject({ model: modelReference }),
  'checkpoint.list': z.strictObject({ model: modelName }),
} as const;

export type MethodName = keyof typeof METHODS;
export type MethodInputs = { readonly [M in MethodName]: z.input<(typeof METHODS)[M]> };
export type MethodParams = { readonly [M in MethodName]: z.output<(typeof METHODS)[M]> };
export interface MethodResults {
  readonly 'daemon.status': DaemonStatus;
  readonly 'job.submit': { readonly jobId: string; readonly state: JobState };
  readonly 'job.subscribe': { readonly lastSeq: number };
  readonly 'job.unsubscribe': Record<string, never>;
  readonly 'job.get': JobRecord;
  /** The newest first. `next` is there when there are more: ask again for those before it. */
  readonly 'job.list': { readonly jobs: readonly JobRecord[]; readonly next?: string | undefined };
  readonly 'job.cancel': { readonly jobId: string; readonly state: JobState };
  readonly 'job.pause': { readonly jobId: string; readonly state: JobState };
  readonly 'job.resume': { readonly jobId: string; readonly state: JobState };
  readonly 'model.list': { readonly models: readonly ModelRecord[] };
  readonly 'model.get': ModelRecord;
  readonly 'model.delete': Record<string, never>;
  readonly 'model.history': HistoryResult;
  readonly 'model.verify': VerifyResult;
  readonly 'checkpoint.list': { readonly checkpoints: readonly CheckpointRecord[] };
}

/** Codes of JSON-RPC 2.0 for faults of the envelope; every other fault is `application` with `data.code`. */
export const RPC_ERROR = {
  parse: -32700,
  invalidRequest: -32600,
  methodNotFound: -32601,
  invalidParams: -32602,
  application: -32000,
} as const;

export const rpcRequest = z.strictObject({
  jsonrpc: z.literal('2.0'),
  id: z.union([z.string().max(256), z.number(), z.null()]).optional(),
  method: z.string().max(256),
  params: z.unknown().optional(),
});

export interface RpcError {
  readonly code: number;
  readonly message: string;
  readonly data?: { readonly code: string };
}
export type RpcResponse =
  | { readonly jsonrpc: '2.0'; readonly id: string | number | null; readonly result: unknown }
  | { readonly jsonrpc: '2.0'; readonly id: string | number | null; readonly error: RpcError };
export interface JobEventNotification {
  readonly jsonrpc: '2.0';
  readonly method: 'job.event';
  readonly params: JobEvent;
}

/** `DATA/daemon.json`, written when the daemon is ready and removed when it stops. */
export const daemonFile = z.object({ pid: z.number().int(), url: z.string(), version: z.string() });
export type DaemonFile = z.infer<typeof daemonFile>;

/** One sentence for the first thing that a schema refused. */
export function describeIssue(error: z.ZodError): string {
  const issue = error.issues.at(0);
  if (issue === undefined) return 'the value is invalid';
  const path = issue.path.map(String).join('.');
  return path === '' ? issue.message : `${path}: ${issue.message}`;
}

/** The codes again as a set that a client can test against. */
export const KNOWN_ERROR_CODES: ReadonlySet<string> = new Set(ERROR_CODES);
