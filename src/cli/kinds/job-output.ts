// Where a followed job is written: results go to stdout, progress and notes to stderr, neither of them in the middle of the other's
// line when both are the same terminal. With --json nothing but JSON goes to stdout.

import { printText, type CliContext } from '../context.ts';
import type { DrawProgress, ProgressLine } from '../render/progress-line.ts';
import type { PhaseProgress } from '../render/records.ts';

/** What stdout gets: text for people, the result as one document, or every event as a line. */
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
  /** True when every event goes to a terminal as JSON: a progress line beside them would say the same again. */
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

  /** Shows how far a part of the work is, unless a line of text is growing on stdout, which it would cut in two. */
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

  /** Writes text to stdout that more may follow on the same line. */
  append(text: string): void {
    this.#context.stdout.write(text);
    this.#lineIsOpen = true;
  }

  /** Ends the progress and the line that `append` left open: what follows stands alone. */
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
