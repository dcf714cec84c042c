// This file defines how a daemon is reached and what it reports of itself: the port, the WebSocket's path and subprotocols, the
// file that announces a ready daemon, and its status.

import { z } from 'zod';

export const VERSION = '0.1.0';

export const SUBPROTOCOL = 'gptd.v1';

/** A browser cannot set headers on a WebSocket: it offers `bearer.<token>` as a second subprotocol. */
export const BEARER_SUBPROTOCOL_PREFIX = 'bearer.';

export const DEFAULT_HOST = '127.0.0.1';

export const DEFAULT_PORT = 7433;

export const WEBSOCKET_PATH = '/v1/ws';

/** The content of `DATA/daemon.json`, which is written when the daemon is ready and removed when it stops. */
export const daemonFile = z.object({ pid: z.number().int(), url: z.string(), version: z.string() });

export type DaemonFile = z.infer<typeof daemonFile>;

export interface DaemonStatus {
  readonly version: string;
  readonly pid: number;
  readonly engine: {
    readonly name: string;
    /** The backend is `cpu`, `node` or `wasm`. */
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
