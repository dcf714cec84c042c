// Where a followed job is written: results go to stdout, and progress and notes go to stderr. When both are the same terminal,
// neither is written into a line of the other. With --json nothing but JSON goes to stdout.

import { printText, type CliContext } from '../context.ts';
import type { DrawProgress, ProgressLine } from '../render/progress-line.ts';
import type { PhaseProgress } from '../render/records.ts';

/** What goes to stdout: text for people, the result as one document, or every event as a line. */
export type Report = 'text' | 'document' | 'events';

export interface JobOutputOptions {
  readonly report: Report;
  readonly context: CliContext;
  readonly progress: ProgressLine;
}

export class JobOutput {
  readonly report: Report;
  readonly #context: CliContext;
  readonly #progress: ProgressLine;
  /** Whether every event goes to a terminal as JSON, where a progress line would say the same again. */
  readonly #isQuiet: boolean;
  #lineIsOpen = false;

  constructor({ report, context, progress }: JobOutputOptions) {
    this.report = report;
    this.#context = context;
    this.#progress = progress;
    this.#isQuiet = report === 'events' && context.stdout.isTTY === true;
  }

  /** Replaces the progress line. */
  update(draw: DrawProgress): void {
    if (!this.#isQuiet) this.#progress.update(draw);
  }

  /**
   * Shows how far a phase of the work is, unless a line of text is growing on stdout, which the progress line would cut in two.
   */
  updatePhase(data: PhaseProgress): void {
    if (!this.#isQuiet && !this.#lineIsOpen) this.#progress.updatePhase(data);
  }

  /** Writes a line of progress that stays. */
  tell(line: string): void {
    if (!this.#isQuiet) this.#progress.print(line);
  }

  /** Ends the progress line until there is a new one. */
  stopProgress(): void {
    this.#progress.close();
  }

  /** Writes text to stdout. More text may follow on the same line. */
  append(text: string): void {
    this.#context.stdout.write(text);
    this.#lineIsOpen = true;
  }

  /** Ends the progress line and the line that `append` left open, so that later text begins on a new line. */
  close(): void {
    this.#progress.close();
    if (this.#lineIsOpen) this.#context.stdout.write('\n');
    this.#lineIsOpen = false;
  }

  /** Writes one line or several to stdout. */
  print(text: string): void {
    printText(this.#context, text);
  }

  /** Writes one line to stderr, once the progress has ended. */
  note(line: string): void {
    this.#context.stderr.write(`${line}\n`);
  }
}
