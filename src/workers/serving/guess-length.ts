// How many ids a sequence guesses next: as many as are likely enough to be worth a check. A guess counts only when all guesses
// before it were right: at a rate r of right guesses the n-th counts with probability r^n. Its cost is one more row in a step
// that reads all weights anyway.

/** A guess is worth its row when it is reached with at least this probability. */
const REACHED_MIN = 1 / 16;
/** With the newest id these are six rows, which the engine's products take at once. */
const FEW = 5;
/** From this rate on a sequence guesses as many ids as it may. */
const RATE_HIGH = 0.9;
/** Below this rate guesses pause for PAUSE_STEPS steps; then some are tried again. */
const RATE_MIN = 0.15;
const PAUSE_STEPS = 24;
/** The weight that a step leaves to what the steps before it have shown. */
const MEMORY = 0.9;

interface Shown {
  readonly right: number;
  readonly seen: number;
}
const AT_FIRST: Shown = { right: 7, seen: 10 };
const AFTER_PAUSE: Shown = { right: 4, seen: 10 };

export class GuessLength {
  #shown = AT_FIRST;
  #pause = 0;

  /** The number of guesses that are worth their rows. */
  get count(): number {
    if (this.#pause > 0) return 0;
    if (this.#rate >= RATE_HIGH) return Infinity;
    return Math.min(FEW, Math.floor(Math.log(REACHED_MIN) / Math.log(this.#rate)));
  }

  get #rate(): number {
    return this.#shown.right / this.#shown.seen;
  }

  /** Learns from a step that has checked `drafted` guesses, of which the first `accepted` were right. */
  learn({ drafted, accepted }: { drafted: number; accepted: number }): void {
    if (this.#pause > 0) this.#pause -= 1;
    if (drafted === 0) return;
    // The first wrong guess ends the check: the guesses after it show nothing.
    const seen = Math.min(drafted, accepted + 1);
    const { right, seen: before } = this.#shown;
    this.#shown = { right: MEMORY * right + accepted, seen: MEMORY * before + seen };
    if (this.#rate < RATE_MIN) [this.#shown, this.#pause] = [AFTER_PAUSE, PAUSE_STEPS];
  }
}
