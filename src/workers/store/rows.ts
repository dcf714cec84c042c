// Rows parsed where they leave the store: columns of JSON become typed values, with a default for each field that an older
// version did not write. What cannot be read is a fault of the row, which the error names. The parsers are plain code, because
// many rows are read at once.

import { checkConfig, type GptConfig } from '../../model/config.ts';
import { ERROR_CODES, GptdError, type ErrorData } from '../../model/errors.ts';
import { completeTokenizer, readStoredTokenizer } from '../../model/text/stored.ts';
import type { CheckpointMeta, DatasetMeta, TrainingMeta } from './messages.ts';

type Fields = Readonly<Record<string, unknown>>;

/**
 * The value of a column of JSON as `read` takes it. Throws `corrupt` for a text that is no JSON and for what `read` refuses;
 * `what` names the column and its row.
 */
export function parseColumn<T>(text: string, what: string, read: (value: unknown) => T): T {
  try {
    return read(JSON.parse(text));
  } catch (error) {
    if (!(error instanceof SyntaxError) && !(error instanceof GptdError)) throw error;
    throw damagedColumn(what, error);
  }
}

export const damagedColumn = (what: string, cause: Error): GptdError =>
  new GptdError('corrupt', `The stored ${what} is damaged (${cause.message.replace(/\.$/, '')}).`, { cause });

/** Returns what `read` gives; null for a row that it finds damaged. */
export function unlessDamaged<T>(read: () => T): T | null {
  try {
    return read();
  } catch (error) {
    if (error instanceof GptdError && error.code === 'corrupt') return null;
    throw error;
  }
}

/** Accepts any value: other code reads specs, results and the data of events, and knows more of them than the store does. */
export const anyValue = (value: unknown): unknown => value;

/** Every version has written all fields of a configuration; unknown ones stay. */
export const readConfig = (value: unknown): GptConfig => checkConfig(fieldsOf(value) as unknown as GptConfig);

/** An error whose code is unknown here, as a newer version wrote it, becomes `engine_failed`. */
export function readError(value: unknown): ErrorData {
  const { code, message } = fieldsOf(value);
  const known = ERROR_CODES.find((name) => name === code) ?? 'engine_failed';
  return { code: known, message: textOf(message, 'message') };
}

export function readCheckpointMeta(value: unknown): CheckpointMeta {
  const { fingerprint, loss = null, valLoss = null, training = null } = fieldsOf(value);
  return {
    fingerprint: textOf(fingerprint, 'fingerprint'),
    loss: orNull(loss, 'loss', numberOf),
    valLoss: orNull(valLoss, 'valLoss', numberOf),
    ...(training === null ? {} : { training: readTrainingMeta(training) }),
  };
}

function readTrainingMeta(value: unknown): TrainingMeta {
  const fields = fieldsOf(value);
  const { chainStart = null, chain = null, best = null, evaluationsSinceBest = 0 } = fields;
  return {
    baseStep: numberOf(fields.baseStep, 'baseStep'),
    baseUpdates: numberOf(fields.baseUpdates, 'baseUpdates'),
    tokens: numberOf(fields.tokens, 'tokens'),
    chainStart: orNull(chainStart, 'chainStart', textOf),
    chain: orNull(chain, 'chain', textOf),
    best: orNull(best, 'best', readBest),
    evaluationsSinceBest: numberOf(evaluationsSinceBest, 'evaluationsSinceBest'),
  };
}

function readBest(value: unknown): NonNullable<TrainingMeta['best']> {
  const { step, valLoss } = fieldsOf(value);
  return { step: numberOf(step, 'step'), valLoss: numberOf(valLoss, 'valLoss') };
}

export function readDatasetMeta(value: unknown): DatasetMeta {
  const fields = fieldsOf(value);
  const { wideTokens, tokenizer = null } = fields;
  if (typeof wideTokens !== 'boolean') throw unreadable('wideTokens', wideTokens);
  return {
    wideTokens,
    tokenCount: numberOf(fields.tokenCount, 'tokenCount'),
    characterCount: numberOf(fields.characterCount, 'characterCount'),
    byteCount: numberOf(fields.byteCount, 'byteCount'),
    tokenizer: completeTokenizer(readStoredTokenizer(tokenizer)),
  };
}

export function readTexts(value: unknown): readonly string[] {
  if (!Array.isArray(value)) throw new GptdError('corrupt', 'It is no list.');
  return value.map((item) => textOf(item, 'an item'));
}

function fieldsOf(value: unknown): Fields {
  if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value as Fields;
  throw new GptdError('corrupt', 'It is no object.');
}

function textOf(value: unknown, name: string): string {
  if (typeof value === 'string') return value;
  throw unreadable(name, value);
}

function numberOf(value: unknown, name: string): number {
  if (typeof value === 'number') return value;
  throw unreadable(name, value);
}

const orNull = <T>(value: unknown, name: string, read: (value: unknown, name: string) => T): T | null =>
  value === null ? null : read(value, name);

const unreadable = (name: string, value: unknown): GptdError =>
  new GptdError('corrupt', `${name} is ${value === undefined ? 'absent' : JSON.stringify(value)}.`);
