// Loaded into a daemon with `node --require`: every run of ONNX Runtime on any thread, as a line "<begin> <end>" of milliseconds
// since 1970 in the file that GPTD_BUSY_LOG names. The product knows nothing of this file.

const { appendFileSync } = require('node:fs');
const { performance } = require('node:perf_hooks');
const threads = require('node:worker_threads');

const log = process.env.GPTD_BUSY_LOG;
// The stages' threads are those that are told where the data are.
if (!threads.isMainThread && log !== undefined && threads.workerData?.dataDir !== undefined) {
  const { InferenceSession } = require('onnxruntime-node');
  const { run } = InferenceSession.prototype;
  const now = () => performance.timeOrigin + performance.now();
  InferenceSession.prototype.run = async function (...args) {
    const begin = now();
    try {
      return await run.apply(this, args);
    } finally {
      appendFileSync(log, `${begin.toFixed(3)} ${now().toFixed(3)}\n`);
    }
  };
}
