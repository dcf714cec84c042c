// A row of the chaos suite is one promise that is attacked a number of times. It counts its tries and its failures, and says in notes
// what it saw. Rows know nothing of the runner, and the runner knows nothing of what they do.

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
  /** The number of attacks: the row's own count, scaled. */
  readonly tries: number;
  /** The random numbers of this row alone, which its name and the seed decide. */
  readonly random: Random;
  readonly tally: Tally;
  /** Makes a data directory that is closed with its daemon when the row ends. A daemon that fails by itself fails the row. */
  readonly home: () => DataHome;
}

export interface Row {
  /** The name that --only takes, such as `R8`. */
  readonly name: string;
  readonly title: string;
  /** The number of attacks at scale 1. */
  readonly tries: number;
  /** The number of attacks in `npm test`, which take a few seconds; 0 leaves the row out. */
  readonly short: number;
  /** The programs that the row cannot run without. */
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

  /** Counts one try, or as many as `count` says, that went well. */
  passed(count = 1): void {
    this.#tries += count;
  }

  /** Counts one try that failed, and notes how. */
  failed(what: unknown): void {
    this.#tries += 1;
    this.fault(what);
  }

  /** Counts a failure beside the tries, or of a try that is counted already. */
  fault(what: unknown): void {
    this.#failures += 1;
    if (this.#failures > FAILURES_TOLD_MAX) return;
    this.note(`FAILED: ${what instanceof Error ? (what.stack ?? what.message) : String(what)}`);
  }

  /** Runs and counts one try, which fails when `attack` throws. */
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

/** Throws with `what` when the condition is false. */
export function check(condition: boolean, what: string): asserts condition {
  if (!condition) throw new Error(what);
}

/** Runs a row in a context of its own. An error that the row throws is one more failure. */
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

/** Returns the programs that a row, or a test, needs and this machine lacks. */
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
