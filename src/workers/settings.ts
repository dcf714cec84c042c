// What every worker thread is started with, and the engines that can be chosen.

import type { NativeRuns } from './ending.ts';

/** The engine to compute with: `auto` is the first one that loads, and `tensorflow` takes the better of its two backends. */
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
