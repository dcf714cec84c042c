// Loaded into a daemon with `node --require`: what a stage's thread spends its time on, as a line "<thread> run|wait <begin> <end>"
// of milliseconds since 1970 in the file that GPTD_BUSY_LOG names: every run of ONNX Runtime, runs of WebAssembly that follow
// each other, and every wait for a request. The product knows nothing of this file.

const { appendFileSync } = require('node:fs');
const { performance } = require('node:perf_hooks');
const threads = require('node:worker_threads');

const log = process.env.GPTD_BUSY_LOG;
// The stages' threads are those that are told where the data are.
if (!threads.isMainThread && log !== undefined && threads.workerData?.dataDir !== undefined) {
  const { binding } = require('onnxruntime-node/dist/binding.js');
  const now = () => performance.timeOrigin + performance.now();
  /** Less than this apart, runs of WebAssembly are one. */
  const APART_MS = 0.5;
  let fused = null;
  const write = (kind, { begin, end }) => {
    appendFileSync(log, `${threads.threadId} ${kind} ${begin.toFixed(3)} ${end.toFixed(3)}\n`);
  };
  const endFused = () => {
    if (fused !== null) write('run', fused);
    fused = null;
  };
  const note = (kind, begin) => {
    const end = now();
    endFused();
    write(kind, { begin, end });
  };
  binding.InferenceSession = class extends binding.InferenceSession {
    run(...args) {
      const begin = now();
      try {
        return super.run(...args);
      } finally {
        note('run', begin);
      }
    }
  };
  const { Instance } = WebAssembly;
  WebAssembly.Instance = function (module, imports) {
    const { exports } = new Instance(module, imports);
    const run = (...args) => {
      const begin = now();
      exports.run(...args);
      const end = now();
      if (fused !== null && begin - fused.end > APART_MS) endFused();
      fused = { begin: fused?.begin ?? begin, end };
    };
    return { exports: { ...exports, run } };
  };
  const { wait } = Atomics;
  Atomics.wait = (...args) => {
    const begin = now();
    const result = wait(...args);
    note('wait', begin);
    return result;
  };
}
