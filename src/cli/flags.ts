// The flags that commands share, and the checks of flags. Commander turns words into numbers with the functions here. The ranges
// are those of the wire contract's schemas. A message about a refused value names the flag, because the user typed a flag.

import { InvalidArgumentError, type Command } from 'commander';
import type { describeIssue } from '../daemon/protocol/errors.ts';
import { JOB_SPECS, type JobKind } from '../daemon/protocol/kinds.ts';
import { LIMITS } from '../daemon/protocol/fields.ts';
import { METHODS, type MethodName } from '../daemon/protocol/methods.ts';
import { usageError } from './exit-codes.ts';

type SchemaError = Parameters<typeof describeIssue>[0];
type Issue = SchemaError['issues'][number];

/** The flags of every command that talks to a daemon. */
export interface ConnectionFlags {
  readonly json?: boolean;
  readonly url?: string;
  readonly token?: string;
  readonly dataDir?: string;
}

/** The flags of every command that submits a job. */
export interface SubmitFlags extends ConnectionFlags {
  readonly detach?: boolean;
  readonly priority?: number;
}

export function addConnectionFlags(command: Command): Command {
  return command
    .option('--json', 'machine-readable output on stdout')
    .option('--url <url>', "the daemon's address (default: $GPTD_URL, else DATA/daemon.json)")
    .option('--token <token>', 'bearer token (default: $GPTD_TOKEN, else DATA/token)')
    .option('--data-dir <dir>', 'data directory (default: $GPTD_HOME, else ~/.gptd)');
}

/** Adds the flags of every command that submits a job. */
export function addSubmitFlags(command: Command): Command {
  const { priorityMax } = LIMITS;
  return addConnectionFlags(
    command
      .option(
        '--priority <number>',
        `place in the queue, -${priorityMax} to ${priorityMax}: larger is sooner (default: 0)`,
        integerBetween(-priorityMax, priorityMax),
      )
      .option('--detach', 'print the job id and leave'),
  );
}

/** Returns the flags that belong to the job's spec. */
export function specFields<F extends SubmitFlags>(flags: F): Omit<F, keyof SubmitFlags> {
  return without(flags, ['json', 'url', 'token', 'dataDir', 'detach', 'priority']);
}

/** Returns a copy of `record` without `keys`. */
export function without<T extends object, K extends keyof T>(record: T, keys: readonly K[]): Omit<T, K> {
  const left = { ...record };
  for (const key of keys) Reflect.deleteProperty(left, key);
  return left;
}

/** Reads a decimal number. `Number` alone would also take '', ' ', '0x10' and 'Infinity'. */
export function parseNumber(text: string): number {
  const value = Number(text);
  if (!/^[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?$/i.test(text) || !Number.isFinite(value)) {
    throw new InvalidArgumentError('It must be a number.');
  }
  return value;
}

/** Returns a reader of integers within bounds, for flags that are not a field of a spec and so have no schema. */
export function integerBetween(min: number, max: number): (text: string) => number {
  return (text) => {
    const value = parseNumber(text);
    if (!Number.isInteger(value) || value < min || value > max) {
      throw new InvalidArgumentError(`It must be an integer between ${min} and ${max}.`);
    }
    return value;
  };
}

/** Reads token ids like `1,2,3`. */
export function parseIds(text: string): number[] {
  if (!/^\s*\d+(\s*,\s*\d+)*\s*$/.test(text)) {
    throw new InvalidArgumentError('It must be token ids separated by commas, like 1,2,3.');
  }
  return text.split(',').map(Number);
}

/** Collects the token ids of a flag that takes several and may be repeated. */
export const collectIds = (text: string, earlier: readonly number[] | undefined): number[] => [
  ...(earlier ?? []),
  ...parseIds(text),
];

/** Collects biases like `50256=-100`: a token id and the bias that is added to its logit. */
export function collectBiases(
  text: string,
  earlier: Readonly<Record<string, number>> | undefined,
): Record<string, number> {
  const match = /^(\d+)=(.+)$/.exec(text);
  if (match === null) throw new InvalidArgumentError('It must be a token id and a bias, like 50256=-100.');
  const [, id, bias] = match;
  return { ...earlier, [id]: parseNumber(bias) };
}

/** Collects the values of an option that may be repeated. */
export const collect = (text: string, earlier: readonly string[] | undefined): string[] => [...(earlier ?? []), text];

const ARGUMENT_NAMES: Readonly<Record<string, string>> = {
  model: 'NAME',
  jobId: 'JOB',
  stopIds: '--stop-id',
  bannedIds: '--ban-id',
};

/** Maps `batchSize` to `--batch-size` and `emb_dim` to `--emb-dim`. A positional argument keeps its name in the usage line. */
export function flagOf(field: string): string {
  return (
    ARGUMENT_NAMES[field] ?? `--${field.replace(/_/g, '-').replace(/[A-Z]/g, (letter) => `-${letter.toLowerCase()}`)}`
  );
}

/** Throws a usage error that names the flag unless the daemon would take `spec`. */
export function checkSpec(kind: JobKind, spec: Readonly<Record<string, unknown>>): void {
  const parsed = JOB_SPECS[kind].safeParse(spec);
  if (!parsed.success) throw usageError(flagIssue(parsed.error, spec));
}

/** Throws a usage error that names the flag unless the daemon would take `params` for `method`. */
export function checkParams(method: MethodName, params: Readonly<Record<string, unknown>>): void {
  const parsed = METHODS[method].safeParse(params);
  if (!parsed.success) throw usageError(flagIssue(parsed.error, params));
}

/** Returns the first issue of a schema as a sentence that names flags instead of fields. */
function flagIssue(error: SchemaError, spec: Readonly<Record<string, unknown>>): string {
  const issue = error.issues.at(0);
  if (issue === undefined) return 'The command is invalid.';
  const path = issue.path.map(String);
  const field = path[0] === 'config' ? path.at(1) : path.at(0);
  if (field === undefined) return `The command is invalid: ${issue.message}.`;
  const value = issue.path.reduce<unknown>(
    (inner, key) => (inner as Readonly<Record<PropertyKey, unknown>> | undefined)?.[key],
    spec,
  );
  return value === undefined
    ? `${flagOf(field)} is missing.`
    : `${flagOf(field)} is ${describeValue(value)}: ${describeRule(issue)}.`;
}

function describeValue(value: unknown): string {
  const text = JSON.stringify(value);
  return text.length > 80 ? `${text.slice(0, 77)}...` : text;
}

function describeRule(issue: Issue): string {
  switch (issue.code) {
    case 'too_small':
      return `it must be ${issue.inclusive === false ? 'above' : 'at least'} ${issue.minimum}${unitOf(issue.origin)}`;
    case 'too_big':
      return `it must be ${issue.inclusive === false ? 'below' : 'at most'} ${issue.maximum}${unitOf(issue.origin)}`;
    case 'invalid_type':
      return `it must be ${issue.expected === 'int' ? 'an integer' : `a ${issue.expected}`}`;
    case 'invalid_value':
      return `it must be one of ${issue.values.map(String).join(', ')}`;
    default:
      return issue.message;
  }
}

/** Returns what a bound counts: characters, entries, or nothing for a number. */
function unitOf(origin: string): string {
  if (origin === 'string') return ' characters long';
  return origin === 'array' ? ' entries long' : '';
}
