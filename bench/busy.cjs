// Notes what the stages' threads of a daemon spend their time on; the daemon loads this file with `node --require`. Each line of
// the file that GPTD_BUSY_LOG names is "<thread> run|wait <begin> <end>", in milliseconds since 1970. There is a line for every
// run of ONNX Runtime, for runs of WebAssembly that follow each other, and for every wait for a request. The product does not
// know this file.

const { appendFileSync } = require('node:fs');
const { performance } = require('node:perf_hooks');
const threads = require('node:worker_threads');

const log = process.env.GPTD_BUSY_LOG;
// The stages' threads are the ones that are told the data directory.
if (!threads.isMainThread && log !== undefined && threads.workerData?.dataDir !== undefined) {
  const { binding } = require('onnxruntime-node/dist/binding.js');
  const now = () => performance.timeOrigin + performance.now();
  /** Runs of WebAssembly that are at most this far apart count as one run. */
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
