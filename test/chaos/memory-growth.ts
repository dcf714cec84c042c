// Measures how much more memory a daemon takes than at some moment before, and compares it with a bound. The memory is what is held
// after a collection of all garbage, or what is resident.

import type { DataHome } from '../e2e/daemon-fixture.ts';
import { liveBytes, MIB, residentBytes } from './probe.ts';
import type { Tally } from './row.ts';

export interface Memory {
  readonly bytes: (home: DataHome) => number | Promise<number>;
  readonly told: (grownMib: number) => string;
  /** The time between two readings while work goes on. */
  readonly watchMs: number;
}

/** What the daemon holds after a collection of all garbage. Only a daemon that was started with `countedHeap` can tell. */
export const HELD: Memory = {
  bytes: liveBytes,
  told: (grownMib) => `${grownMib.toFixed(2)} MiB more are held`,
  watchMs: 500,
};

export const RESIDENT: Memory = {
  bytes: ({ daemon }) => residentBytes(daemon.pid),
  told: (grownMib) => `resident memory grew by ${grownMib.toFixed(1)} MiB`,
  watchMs: 20,
};

export class MemoryGrowth {
  readonly #home: DataHome;
  readonly #memory: Memory;
  readonly #before: number;

  private constructor(home: DataHome, { memory, before }: { memory: Memory; before: number }) {
    this.#home = home;
    this.#memory = memory;
    this.#before = before;
  }

  /** Measures growth from now on. */
  static async since(home: DataHome, memory: Memory): Promise<MemoryGrowth> {
    return new MemoryGrowth(home, { memory, before: await memory.bytes(home) });
  }

  async mib(): Promise<number> {
    return ((await this.#memory.bytes(this.#home)) - this.#before) / MIB;
  }

  /** Resolves to the largest growth, in MiB, that is seen while `work` goes on. */
  async peakMib(work: () => Promise<void>): Promise<number> {
    const watching = new AbortController();
    const watched = async (): Promise<number> => {
      let peak = 0;
      while (!watching.signal.aborted) {
        peak = Math.max(peak, await this.mib());
        await new Promise((resolve) => setTimeout(resolve, this.#memory.watchMs));
      }
      return peak;
    };
    const [peak] = await Promise.all([watched(), work().finally(() => watching.abort())]);
    return peak;
  }

  /** Counts a fault when the growth is more than `mibMax`. Returns a text that tells the growth. */
  judge(tally: Tally, grownMib: number, mibMax: number): string {
    const told = this.#memory.told(grownMib);
    if (grownMib > mibMax) tally.fault(`${told}, and not ${mibMax} at most`);
    return told;
  }
}
