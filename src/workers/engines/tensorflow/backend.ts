// Finds what TensorFlow.js computes with. It is libtensorflow, through @tensorflow/tfjs-node, where that package is installed and
// works in two threads of one process; a process of its own tries this out, because it may crash. Elsewhere it is WebAssembly.
// Every thread that calls this has an instance of its own.

import { spawnSync } from 'node:child_process';
import { copyFileSync, rmSync } from 'node:fs';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { threadId } from 'node:worker_threads';
import { GptdError } from '../../../model/errors.ts';
import type { Tf } from './site.ts';

export interface Backend {
  readonly tf: Tf;
  readonly name: 'node' | 'wasm';
  readonly version: string;
  readonly fingerprint: string;
}

const require = createRequire(import.meta.url);
const NODE_PACKAGE = '@tensorflow/tfjs-node';
const PROBE_FILE = fileURLToPath(new URL('./probe.js', import.meta.url));
const PROBE_MS_MAX = 60_000;

/** Loads the wanted backend, or the best one for null. It throws when that does not load. */
export async function loadBackend(wanted: Backend['name'] | null): Promise<Backend> {
  if (wanted === 'node') return loadNode();
  if (wanted === 'wasm') return await loadWasm();
  const fault = nodeFault();
  if (fault === null) return loadNode();
  if (fault !== 'absent') {
    process.stderr.write(
      `gptd: ${NODE_PACKAGE} is installed and does not work here, so WebAssembly computes: ${fault}\n`,
    );
  }
  return await loadWasm();
}

/** Returns why tfjs-node cannot be used; null when it can. */
function nodeFault(): string | null {
  try {
    require.resolve(`${NODE_PACKAGE}/package.json`);
  } catch {
    return 'absent';
  }
  const { status, signal, stderr } = spawnSync(process.execPath, [PROBE_FILE], {
    encoding: 'utf8',
    timeout: PROBE_MS_MAX,
    stdio: ['ignore', 'ignore', 'pipe'],
  });
  if (status === 0) return null;
  const said = /^\w*Error\b.*/m.exec(stderr)?.[0];
  return said ?? `a process that tried it ended with ${signal === null ? `exit code ${status}` : signal}`;
}

/**
 * Loads libtensorflow. The addon has a set of names that all threads of a process would change without a lock. So each thread
 * loads a copy of the addon's file, which has a set of its own. The copy lies beside the original, as it finds libtensorflow by a
 * relative path.
 */
export function loadNode(): Backend {
  const dlopen = process.dlopen.bind(process);
  process.dlopen = (module, file, ...flags) => {
    const { dir, name, ext } = path.parse(file);
    const copy = path.join(dir, `${name}-${process.pid}-${threadId}${ext}`);
    copyFileSync(file, copy);
    try {
      dlopen(module, copy, ...flags);
    } finally {
      // Once loaded, the file is not needed. Windows does not let it be removed.
      if (process.platform !== 'win32') rmSync(copy);
    }
  };
  try {
    const tf = require(NODE_PACKAGE) as Tf & { readonly version: Readonly<Record<string, string>> };
    if (tf.getBackend() !== 'tensorflow') throw new Error(`${NODE_PACKAGE} has not loaded libtensorflow`);
    const version = tf.version['tfjs-node'];
    // libtensorflow chooses its kernels by the processor, and its sums by the number of threads.
    const machine = `${process.arch}/${os.cpus()[0]?.model.trim() ?? 'unknown'}/${os.availableParallelism()} cores`;
    return { tf, name: 'node', version, fingerprint: `tensorflow.js ${version} tfjs-node ${machine}` };
  } finally {
    process.dlopen = dlopen;
  }
}

async function loadWasm(): Promise<Backend> {
  const tf: Tf = await import('@tensorflow/tfjs-core');
  const { setWasmPaths, version_wasm: version } = await import('@tensorflow/tfjs-backend-wasm');
  const folder = path.join(path.dirname(require.resolve('@tensorflow/tfjs-backend-wasm/package.json')), 'dist');
  setWasmPaths(`${folder}${path.sep}`);
  tf.enableProdMode();
  // The backend's threads would be a second pool beside ours, and their number would decide the bits.
  tf.env().set('WASM_HAS_MULTITHREAD_SUPPORT', false);
  if (!(await tf.setBackend('wasm'))) throw new GptdError('engine_failed', 'TensorFlow.js cannot start WebAssembly.');
  refuseToRunOut(tf);
  const simd = await tf.env().getAsync('WASM_HAS_SIMD_SUPPORT');
  // WebAssembly's arithmetic is the same on every processor.
  return { tf, name: 'wasm', version, fingerprint: `tensorflow.js ${version} wasm${simd === true ? '-simd' : ''}` };
}

/** Makes the backend throw when it gets no memory: it does not check for that, and would go on at address 0. */
function refuseToRunOut(tf: Tf): void {
  const { wasm } = tf.backend() as unknown as { wasm: { _malloc: (bytes: number) => number } };
  const malloc = wasm._malloc;
  wasm._malloc = (bytes) => {
    const address = malloc(bytes);
    if (address === 0 && bytes > 0) {
      throw new GptdError(
        'out_of_memory',
        `WebAssembly has no room for another ${bytes} bytes: a thread has 4 GiB at most. Take smaller micro-batches, more --workers or --engine onnx.`,
      );
    }
    return address;
  };
}
