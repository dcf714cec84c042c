// What a daemon is started with. Whoever starts it has checked the bounds, and has filled in the defaults.

import type { DaemonFile } from './protocol/daemon.ts';

export interface DaemonOptions {
  readonly dataDir: string;
  readonly host: string;
  readonly port: number;
  /** The number of worker threads for stages. */
  readonly workers: number;
  readonly engine: 'auto' | 'onnx' | 'tensorflow';
  readonly allowOrigins: readonly string[];
  /** The number of jobs that may wait. */
  readonly queueLimit: number;
  /** The number of ended jobs that are kept. */
  readonly keepJobs: number;
  /** The log tells everything from this level up. */
  readonly logLevel: 'trace' | 'debug' | 'info' | 'warn' | 'error' | 'silent';
  /** Replaces the token of the data directory. */
  readonly token: string | undefined;
  readonly onReady?: (info: DaemonFile) => void;
}

/** Says how a daemon that had become ready ended: as it was told to, or by a fault that its log names. */
export type DaemonEnd = 'stopped' | 'failed';
