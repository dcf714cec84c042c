// This file is loaded into a daemon's process before the daemon. At SIGUSR2 it collects all garbage and writes how many bytes are left
// in the heap and in buffers beside it. Garbage is not counted, so when this number grows, something holds memory.

'use strict';

const { renameSync, writeFileSync } = require('node:fs');
const { setFlagsFromString } = require('node:v8');
const { runInNewContext } = require('node:vm');
const { isMainThread } = require('node:worker_threads');

const file = process.env.GPTD_LIVE_BYTES;

if (isMainThread && file !== undefined) {
  setFlagsFromString('--expose-gc');
  const collect = runInNewContext('gc');
  process.on('SIGUSR2', () => {
    collect();
    // Buffers are given back after a turn of the event loop.
    setImmediate(() => {
      collect();
      const { heapUsed, external } = process.memoryUsage();
      writeFileSync(`${file}.new`, String(heapUsed + external));
      renameSync(`${file}.new`, file);
    });
  });
}
