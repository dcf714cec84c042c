// Caches of sequences that have ended, kept on the stages for prompts that begin in the same way; the least recently used goes
// first. The ids here are those of the cached positions.

import { capacityFor } from '../../model/programs/serving.ts';

/** More are not worth their memory: short sequences of a small model would take thousands of places before their positions are full. */
export const RETAINED_MAX = 256;
/**
 * Full contexts that they may be together. Memory that is soon used again is faster than new memory, which the kernel has to
 * find page by page.
 */
export const RETAINED_CONTEXTS = 2;

export class Retained {
  /** Least recently used first. */
  readonly #ids = new Map<string, readonly number[]>();
  readonly #positionsMax: number;

  /** `context` is the model's. */
  constructor(context: number) {
    this.#positionsMax = RETAINED_CONTEXTS * capacityFor(context);
  }

  add(name: string, ids: readonly number[]): void {
    this.#ids.set(name, ids);
  }

  touch(name: string): void {
    const ids = this.#ids.get(name);
    if (ids === undefined) return;
    this.#ids.delete(name);
    this.#ids.set(name, ids);
  }

  *entries(): Generator<{ readonly name: string; readonly ids: readonly number[] }> {
    for (const [name, ids] of this.#ids) yield { name, ids };
  }

  /**
   * Drops sequences until RETAINED_MAX are left, of RETAINED_CONTEXTS and of `roomMax` positions at the most; returns their names.
   * Those `spared` stay in any case.
   */
  evict(roomMax: number, spared: ReadonlySet<string | undefined>): string[] {
    const positionsMax = Math.min(roomMax, this.#positionsMax);
    const evicted: string[] = [];
    let used = [...this.#ids.values()].reduce((sum, ids) => sum + capacityFor(ids.length), 0);
    for (const [name, ids] of this.#ids) {
      if (used <= positionsMax && this.#ids.size <= RETAINED_MAX) break;
      if (spared.has(name)) continue;
      this.#ids.delete(name);
      used -= capacityFor(ids.length);
      evicted.push(name);
    }
    return evicted;
  }

  clear(): void {
    this.#ids.clear();
  }
}

/** How many ids two sequences have in common at their beginning. */
export function commonLength(a: readonly number[], b: readonly number[]): number {
  const end = Math.min(a.length, b.length);
  let length = 0;
  while (length < end && a[length] === b[length]) length += 1;
  return length;
}
