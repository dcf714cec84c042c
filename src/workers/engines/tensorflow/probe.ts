// A program of its own that tries whether @tensorflow/tfjs-node works in two threads at once: where it does not, it may crash the
// process. Exit code 0 says that it works.

import { isMainThread, Worker } from 'node:worker_threads';
import { loadNode } from './backend.ts';

const THREAD_COUNT = 2;

if (isMainThread) {
  for (let i = 0; i < THREAD_COUNT; i++) {
    // An error in a thread without a listener ends the process.
    new Worker(new URL(import.meta.url));
  }
} else {
  const { tf } = loadNode();
  for (let i = 0; i < 20; i++) {
    tf.tidy(() => {
      const product = tf.matMul(tf.fill([64, 64], 0.5), tf.fill([64, 64], 2)).dataSync();
      if (product.some((value) => value !== 64)) throw new Error('@tensorflow/tfjs-node computes a wrong product');
    });
  }
}
