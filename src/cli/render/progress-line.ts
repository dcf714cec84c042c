// Progress on stderr. On a terminal it is one live line, redrawn in place and never wider than the terminal. Elsewhere it is a
// plain line every few seconds. Lines that must stay (evaluations, checkpoints, logs) are printed above the live line.

import type { OutputStream } from '../context.ts';
import { formatPhaseLine, type PhaseProgress } from './records.ts';

const LIVE_INTERVAL_MS = 100;
const PLAIN_INTERVAL_MS = 5_000;
/** A carriage return, and the escape code that erases the line. */
const CLEAR = '\r\x1b[2K';
const COLUMNS_DEFAULT = 80;

/** Draws a text of at most `columns` characters; `live` allows a bar. */
export type DrawProgress = (options: { readonly columns: number; readonly live: boolean }) => string;

export class ProgressLine {
  readonly #stream: OutputStream;
  readonly #live: boolean;
  #timer: NodeJS.Timeout | undefined;
  #latest: DrawProgress | undefined;
  #isDrawn = false;

  constructor(stream: OutputStream) {
    this.#stream = stream;
    this.#live = stream.isTTY === true;
  }

  /** Shows what `draw` draws. This is cheap to call for every event, because only the latest `draw` is called when it is time. */
  update(draw: DrawProgress): void {
    this.#latest = draw;
    this.#timer ??= setInterval(() => this.#draw(), this.#live ? LIVE_INTERVAL_MS : PLAIN_INTERVAL_MS).unref();
  }

  /** Shows how far a phase of the work is. */
  updatePhase(progress: PhaseProgress): void {
    this.update((drawing) => formatPhaseLine(progress, drawing));
  }

  /** Prints a line that stays. */
  print(line: string): void {
    this.clear();
    this.#stream.write(`${line}\n`);
  }

  /** Removes the live line, so that something else may be written to the terminal. */
  clear(): void {
    if (this.#isDrawn) this.#stream.write(CLEAR);
    this.#isDrawn = false;
  }

  /** May be called twice. */
  close(): void {
    clearInterval(this.#timer);
    this.#timer = undefined;
    this.#latest = undefined;
    this.clear();
  }

  #draw(): void {
    if (this.#latest === undefined) return;
    // A terminal that does not know its width says 0.
    const columns = Math.max(0, this.#stream.columns ?? 0) || COLUMNS_DEFAULT;
    if (this.#live) {
      // The last column stays empty: some terminals wrap when it is written.
      const text = this.#latest({ columns: columns - 1, live: true }).slice(0, columns - 1);
      this.#stream.write(`${CLEAR}${text}`);
      this.#isDrawn = true;
      return;
    }
    this.#stream.write(`${this.#latest({ columns: Infinity, live: false })}\n`);
    this.#latest = undefined;
  }
}
