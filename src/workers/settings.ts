// What every worker thread is started with, and which engine one may ask for.

import type { NativeRuns } from './ending.ts';

/** What may be asked for: `auto` is the first engine that loads, `tensorflow` the best of its two backends. */
export type EngineChoice = 'auto' | 'onnx' | 'tensorflow' | 'tensorflow-node' | 'tensorflow-wasm';

export interface EngineInfo {
  readonly name: string;
  readonly backend: string;
  readonly version: string;
  readonly fingerprint: string;
}

/** What every worker thread is started with. */
export interface WorkerSettings {
  readonly dataDir: string;
  readonly engine: EngineChoice;
  readonly nativeRuns: NativeRuns;
}
