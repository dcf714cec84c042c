// How many ids a sequence guesses next: as many as are likely enough to be checked at all. A guess counts only when those before
// it were right, so at a rate r of right ones the n-th is reached with r^n; what it costs is a row in a pass that reads all weights
// anyway.

/** A guess is worth its row when it is reached at least so often. */
const REACHED_MIN = 1 / 16;
/** With the newest id they are six rows, which the engine's products take in one pass. */
const FEW = 5;
/** From this rate on as many as there may be. */
const RATE_HIGH = 0.9;
/** Below it guesses are paused for so many steps; then some are tried again. */
const RATE_MIN = 0.15;
const PAUSE_STEPS = 24;
/** What is left after a step of what the steps before have shown. */
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

  /** Guesses that pay. */
  get count(): number {
    if (this.#pause > 0) return 0;
    if (this.#rate >= RATE_HIGH) return Infinity;
    return Math.min(FEW, Math.floor(Math.log(REACHED_MIN) / Math.log(this.#rate)));
  }

  get #rate(): number {
    return this.#shown.right / this.#shown.seen;
  }

  /** A step is over that has checked `drafted` guesses, of which the first `accepted` were right. */
  learn({ drafted, accepted }: { drafted: number; accepted: number }): void {
    if (this.#pause > 0) this.#pause -= 1;
    if (drafted === 0) return;
    // The first wrong one ends the check: those behind it show nothing.
    const seen = Math.min(drafted, accepted + 1);
    const { right, seen: before } = this.#shown;
    this.#shown = { right: MEMORY * right + accepted, seen: MEMORY * before + seen };
    if (this.#rate < RATE_MIN) [this.#shown, this.#pause] = [AFTER_PAUSE, PAUSE_STEPS];
  }
}
