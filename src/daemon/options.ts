// A daemon is started with these options, which decide everything about its start within their bounds. This file has only
// constants and types, so that the command line can read its flags without loading a daemon.

import type { DaemonFile } from './protocol/daemon.ts';

/** The largest number of worker threads of one daemon. The default is one for each core. */
export const WORKERS_MAX = 64;

/** The number of jobs that may wait. */
export const QUEUE_LIMIT_DEFAULT = 100;
export const QUEUE_LIMIT_MAX = 1e6;

/** The number of ended jobs that are kept. */
export const KEEP_JOBS_DEFAULT = 10_000;
export const KEEP_JOBS_MAX = 1e9;

/** The levels of the daemon's log, which tells everything from the chosen level up. */
export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const;

export interface DaemonOptions {
  readonly dataDir: string;
  readonly host: string;
  readonly port: number;
  /** The number of worker threads for stages; by default one for each core. */
  readonly workers: number | undefined;
  readonly engine: 'auto' | 'onnx' | 'tensorflow';
  readonly allowOrigins: readonly string[];
  readonly queueLimit: number;
  readonly keepJobs: number;
  readonly logLevel: (typeof LOG_LEVELS)[number];
  /** Replaces the token of the data directory. */
  readonly token: string | undefined;
  readonly onReady?: (info: DaemonFile) => void;
}

/** Says how a daemon that had become ready ended: as it was told to, or by a fault that its log names. */
export type DaemonEnd = 'stopped' | 'failed';
