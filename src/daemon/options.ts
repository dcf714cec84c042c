// What a daemon is started with: everything that its start may decide.

import type { DaemonFile, LogLevel } from './protocol/daemon.ts';

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
  readonly logLevel: LogLevel;
  /** Replaces the token of the data directory. */
  readonly token: string | undefined;
  readonly onReady?: (info: DaemonFile) => void;
}
