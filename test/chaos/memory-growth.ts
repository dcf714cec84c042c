// How much more memory a daemon takes than it took at some moment, against a bound: what is held after a collection of all
// garbage, or what is resident.

import type { DataHome } from '../e2e/daemon-fixture.ts';
import { liveBytes, MIB, residentBytes } from './probe.ts';
import type { Tally } from './row.ts';

export interface Memory {
  readonly bytes: (home: DataHome) => number | Promise<number>;
  readonly told: (grownMib: number) => string;
  /** How often it is looked at while something goes on. */
  readonly watchMs: number;
}

/** Needs a daemon that was started with `countedHeap`. */
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

  /** From now on. */
  static async since(home: DataHome, memory: Memory): Promise<MemoryGrowth> {
    return new MemoryGrowth(home, { memory, before: await memory.bytes(home) });
  }

  async mib(): Promise<number> {
    return ((await this.#memory.bytes(this.#home)) - this.#before) / MIB;
  }

  /** The most that is seen while `work` goes on. */
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

  /** A fault when it is more than `mibMax`; what there is to tell. */
  judge(tally: Tally, grownMib: number, mibMax: number): string {
    const told = this.#memory.told(grownMib);
    if (grownMib > mibMax) tally.fault(`${told}, and not ${mibMax} at most`);
    return told;
  }
}
