// How a thread is ended: between two native runs, never within one. Node lets nothing native call into a thread that is told to
// terminate; ONNX Runtime's binding takes the refusal for a bug and aborts the process. So a thread counts what it runs
// natively. Whoever ends it says so first and waits until nothing runs; from then on the thread begins nothing.

import process from 'node:process';
import { setTimeout as delay } from 'node:timers/promises';

/** Shared with the thread, one number: twice the count of native runs under way, and 1 more once the thread is to end. */
export type NativeRuns = Int32Array;

const ENDING = 1;
const RUN = 2;
/** Longer than any run. A thread that still does not come back is ended all the same. */
const RUN_MS_MAX = 10_000;
const POLL_MS = 1;

export const noNativeRuns = (): NativeRuns => new Int32Array(new SharedArrayBuffer(Int32Array.BYTES_PER_ELEMENT));

/** On the thread: does `work`, which runs natively now or later. Does not return when the thread is to end. */
export async function natively<T>(runs: NativeRuns, work: () => Promise<T>): Promise<T> {
  if ((Atomics.add(runs, 0, RUN) & ENDING) !== 0) park(runs);
  try {
    return await work();
  } finally {
    if (Atomics.sub(runs, 0, RUN) - RUN === ENDING) Atomics.notify(runs, 0);
  }
}

/** A thread that comes here runs nothing natively, also when it has runs under way: theirs is a later turn of its loop. */
function park(runs: NativeRuns): void {
  markEnded(runs);
  Atomics.wait(runs, 0, ENDING);
}

/** The thread is gone, or as good as gone; one that is started in its place with the same number ends at its first run. */
export function markEnded(runs: NativeRuns): void {
  Atomics.store(runs, 0, ENDING);
  Atomics.notify(runs, 0);
}

/** For whoever ends the thread: resolves when it runs nothing natively and will not again. */
export async function untilIdle(runs: NativeRuns): Promise<void> {
  const endAt = performance.now() + RUN_MS_MAX;
  Atomics.or(runs, 0, ENDING);
  while (Atomics.load(runs, 0) !== ENDING && performance.now() < endAt) await delay(POLL_MS);
}

const living = new Set<NativeRuns>();

/** From now on the process does not exit within a run of this thread, however it exits; until the thread has ended. */
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
