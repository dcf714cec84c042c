// How a thread is ended: between two native runs, never within one. Node lets nothing native call into a thread that is told to
// terminate; ONNX Runtime's binding takes the refusal for a bug and aborts the process. So a thread counts what it runs
// natively. Whoever ends it says so first and waits until nothing runs; from then on the thread begins nothing.

import process from 'node:process';
import { setTimeout as delay } from 'node:timers/promises';

/** One number that is shared with the thread: twice the count of native runs under way, and 1 more once the thread is to end. */
export type NativeRuns = Int32Array;

const ENDING = 1;
const RUN = 2;
/** This is longer than any run. A thread that has not come back by then is ended all the same. */
const RUN_MS_MAX = 10_000;
const POLL_MS = 1;

export const noNativeRuns = (): NativeRuns => new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT));

/** Called on the thread: does `work`, which runs natively now or later. It does not return when the thread is to end. */
export async function natively<T>(runs: NativeRuns, work: () => Promise<T>): Promise<T> {
  if ((Atomics.add(runs, 0, RUN) & ENDING) !== 0) park(runs);
  try {
    return await work();
  } finally {
    if (Atomics.sub(runs, 0, RUN) - RUN === ENDING) Atomics.notify(runs, 0);
  }
}

/**
 * Called on the thread: while it is here it runs nothing natively, as runs that are under way go on in a later turn of its loop.
 */
function park(runs: NativeRuns): void {
  markEnded(runs);
  Atomics.wait(runs, 0, ENDING);
}

/**
 * Says that the thread is gone or about to be. A thread that is started in its place with the same number ends at its first run.
 */
export function markEnded(runs: NativeRuns): void {
  Atomics.store(runs, 0, ENDING);
  Atomics.notify(runs, 0);
}

/** Called by whoever ends the thread: resolves when the thread runs nothing natively and will not do so again. */
export async function untilIdle(runs: NativeRuns): Promise<void> {
  const endAt = performance.now() + RUN_MS_MAX;
  Atomics.or(runs, 0, ENDING);
  while (Atomics.load(runs, 0) !== ENDING && performance.now() < endAt) await delay(POLL_MS);
}

const living = new Set<NativeRuns>();

/** Until the thread has ended, the process does not exit during a run of the thread, however it exits. */
export function endWithProcess(runs: NativeRuns): { readonly ended: () => void } {
  if (living.size === 0) process.on('exit', awaitIdle);
  living.add(runs);
  return {
    ended: () => {
      if (living.delete(runs) && living.size === 0) process.off('exit', awaitIdle);
    },
  };
}

function awaitIdle(): void {
  const endAt = performance.now() + RUN_MS_MAX;
  for (const runs of living) Atomics.or(runs, 0, ENDING);
  for (const runs of living) {
    for (let seen = Atomics.load(runs, 0); seen !== ENDING; seen = Atomics.load(runs, 0)) {
      const leftMs = endAt - performance.now();
      if (leftMs <= 0) return;
      Atomics.wait(runs, 0, seen, leftMs);
    }
  }
}
