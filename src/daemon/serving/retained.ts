// The caches of sequences that have ended are kept on the stages, for prompts that begin in the same way. The least recently used
// one goes first. The ids here are those of the cached positions.

import { capacityFor } from '../../model/programs/serving.ts';

/**
 * The largest number of kept caches. More of them are not worth their memory: short sequences of a small model would take
 * thousands of places before their positions are full.
 */
export const RETAINED_MAX = 256;
/**
 * The kept caches together are at most as long as so many full contexts. Memory that is soon used again is faster than new
 * memory, which the kernel has to find page by page.
 */
export const RETAINED_CONTEXTS = 2;

export class Retained {
  /** Holds the sequences by name, the least recently used first. */
  readonly #kept = new Map<string, { readonly ids: readonly number[]; readonly positions: number }>();
  readonly #positionsMax: number;

  /** `context` is the number of positions of the model's context. */
  constructor(context: number) {
    this.#positionsMax = RETAINED_CONTEXTS * capacityFor(context);
  }

  /** `positions` are those that its cache may take; it holds the ids of the first of them. */
  add(name: string, ids: readonly number[], positions = ids.length): void {
    this.#kept.set(name, { ids, positions: capacityFor(positions) });
  }

  touch(name: string): void {
    const kept = this.#kept.get(name);
    if (kept === undefined) return;
    this.#kept.delete(name);
    this.#kept.set(name, kept);
  }

  *entries(): Generator<{ readonly name: string; readonly ids: readonly number[] }> {
    for (const [name, { ids }] of this.#kept) yield { name, ids };
  }

  /**
   * Drops sequences until at most RETAINED_MAX are left, which together have at most `roomMax` positions and are at most as long
   * as RETAINED_CONTEXTS full contexts. Returns the names of the dropped ones. The `spared` sequences stay in any case.
   */
  evict(roomMax: number, spared: ReadonlySet<string | undefined>): string[] {
    const positionsMax = Math.min(roomMax, this.#positionsMax);
    const evicted: string[] = [];
    let used = [...this.#kept.values()].reduce((sum, { positions }) => sum + positions, 0);
    for (const [name, { positions }] of this.#kept) {
      if (used <= positionsMax && this.#kept.size <= RETAINED_MAX) break;
      if (spared.has(name)) continue;
      this.#kept.delete(name);
      used -= positions;
      evicted.push(name);
    }
    return evicted;
  }

  clear(): void {
    this.#kept.clear();
  }
}

/** Returns how many ids two sequences have in common at their beginning. */
export function commonLength(a: readonly number[], b: readonly number[]): number {
  const end = Math.min(a.length, b.length);
  let length = 0;
  while (length < end && a[length] === b[length]) length += 1;
  return length;
}
