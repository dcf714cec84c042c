// What a row of the chaos suite is: one promise, attacked a number of times. A row counts its tries and its failures; it says
// what it saw in notes. Rows know nothing of the runner, and the runner nothing of what they do.

import { accessSync, constants } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { DataHome } from '../e2e/daemon-fixture.ts';
import type { Random } from './random.ts';

export interface Outcome {
  readonly tries: number;
  readonly failures: number;
  readonly notes: readonly string[];
}

export interface Context {
  /** How often to attack: the row's own count, scaled. */
  readonly tries: number;
  /** Draws of this row alone: its name and the seed decide them. */
  readonly random: Random;
  readonly tally: Tally;
  /** A data directory that is closed with its daemon when the row ends; a daemon that fails by itself fails the row. */
  readonly home: () => DataHome;
}

export interface Row {
  /** `R8` and the like: what --only takes. */
  readonly name: string;
  readonly title: string;
  /** The full count. */
  readonly tries: number;
  /** The count of `npm test`: a few seconds. */
  readonly short: number;
  /** Programs that it cannot run without. */
  readonly needs?: readonly string[];
  readonly run: (context: Context) => Promise<Outcome>;
}

const FAILURES_TOLD_MAX = 5;

/** Counts tries and failures; a row ends with `return tally.outcome()`. */
export class Tally {
  #tries = 0;
  #failures = 0;
  readonly #notes: string[] = [];

  get failures(): number {
    return this.#failures;
  }

  note(text: string): void {
    this.#notes.push(text);
  }

  /** One try, or as many as `count` says, that went well. */
  passed(count = 1): void {
    this.#tries += count;
  }

  /** One try that failed, and how. */
  failed(what: unknown): void {
    this.#tries += 1;
    this.fault(what);
  }

  /** A failure of a try that is counted already. */
  fault(what: unknown): void {
    this.#failures += 1;
    if (this.#failures > FAILURES_TOLD_MAX) return;
    this.note(`FAILED: ${what instanceof Error ? (what.stack ?? what.message) : String(what)}`);
  }

  /** One try: it fails when `attack` throws. */
  async try(attack: () => Promise<void> | void): Promise<void> {
    try {
      await attack();
      this.passed();
    } catch (error) {
      this.failed(error);
    }
  }

  outcome(): Outcome {
    return { tries: this.#tries, failures: this.#failures, notes: [...this.#notes] };
  }
}

/** What has to be true; throws with `what` otherwise. */
export function check(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Error(what);
}

/** Runs a row in a context of its own. What it throws is one more failure. */
export async function runRow(
  row: Row,
  { tries, random }: { readonly tries: number; readonly random: Random },
): Promise<Outcome> {
  const homes: DataHome[] = [];
  const tally = new Tally();
  const home = (): DataHome => {
    const made = new DataHome();
    homes.push(made);
    return made;
  };
  try {
    await row.run({ tries, random, tally, home });
  } catch (error) {
    tally.failed(error);
  }
  for (const opened of homes) await opened.close().catch((error: unknown) => tally.failed(error));
  return tally.outcome();
}

/** The programs that a row, or a test, needs and this machine lacks. */
export const missingPrograms = ({ needs = [] }: Pick<Row, 'needs'>): string[] =>
  needs.filter((program) => !isInstalled(program));

const SEARCHED = [...(process.env['PATH'] ?? '').split(path.delimiter), '/usr/sbin', '/sbin'];

function isInstalled(program: string): boolean {
  return SEARCHED.some((folder) => {
    try {
      accessSync(path.join(folder, program), constants.X_OK);
      return true;
    } catch {
      return false;
    }
  });
}
