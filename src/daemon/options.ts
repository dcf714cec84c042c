// What a daemon is started with: everything that its start may decide, and within which bounds. Plain constants and types, so that
// the command line can read its flags without loading a daemon.

import type { DaemonFile } from './protocol/daemon.ts';

/** Worker threads of one daemon; by default one a core. */
export const WORKERS_MAX = 64;

/** Jobs that may wait. */
export const QUEUE_LIMIT_DEFAULT = 100;
export const QUEUE_LIMIT_MAX = 1e6;

/** Ended jobs that are kept. */
export const KEEP_JOBS_DEFAULT = 10_000;
export const KEEP_JOBS_MAX = 1e9;

/** How much the daemon's log tells: everything from this level up. */
export const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const;

export interface DaemonOptions {
  readonly dataDir: string;
  readonly host: string;
  readonly port: number;
  /** Worker threads for stages; by default one a core. */
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

/** How a daemon ended that had become ready: as it was told to, or by a fault that its log names. */
export type DaemonEnd = 'stopped' | 'failed';
