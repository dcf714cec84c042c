// What the daemon says about itself: one JSON object a line on stderr (pino), or a plain line where stderr is a terminal.
// Writing never keeps the daemon waiting: a reader that stops costs lines, not answers. No line holds a token, a prompt or a spec.

import { copyFileSync, fstatSync, ftruncateSync, statSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { pino } from 'pino';
import { errorData, GptdError } from '../../model/errors.ts';

const STDERR = 2;
/** The largest size of the file that `--detach` writes; as much again is kept in `daemon.log.1`. */
const LOG_FILE_BYTES_MAX = 8 << 20;
/** How many bytes may wait for a reader that does not read. */
const WAITING_BYTES_MAX = 1 << 20;
const LOG_FILE = 'daemon.log';

export type Logger = pino.Logger;

export interface Log {
  readonly logger: Logger;
  /** Writes the lines that wait. */
  flush(): void;
}

export function openLog({ level, dataDir }: { readonly level: pino.LevelWithSilent; readonly dataDir: string }): Log {
  const destination = pino.destination({ fd: STDERR, sync: false, maxLength: WAITING_BYTES_MAX });
  // The daemon goes on when nobody can read its log any more.
  destination.on('error', () => undefined);
  const file = path.join(dataDir, LOG_FILE);
  const bound = isStderr(file) ? new BoundedFile(file, () => destination.flushSync()) : null;
  const write = (line: string): void => {
    bound?.admit(Buffer.byteLength(line));
    destination.write(process.stderr.isTTY ? plainLine(line) : line);
  };
  const logger = pino(
    {
      level,
      base: null,
      timestamp: pino.stdTimeFunctions.isoTime,
      formatters: { level: (label) => ({ level: label }) },
      redact: ['token', 'authorization', '*.token', '*.authorization'],
    },
    { write },
  );
  return { logger, flush: () => destination.flushSync() };
}

/** Logs an error: a fault with a code in one sentence, a bug with its stack. */
export function logError(logger: Logger, error: unknown): void {
  const { code, message } = errorData(error);
  if (error instanceof GptdError) logger.error({ code }, message);
  else logger.error({ code, err: error }, message);
}

/** Whether stderr is that very file: only then does truncating it also work for whatever else this process writes to stderr. */
function isStderr(file: string): boolean {
  try {
    const [here, there] = [fstatSync(STDERR), statSync(file)];
    return here.isFile() && here.ino === there.ino && here.dev === there.dev;
  } catch {
    return false;
  }
}

/** Copies the file to `.1` and begins anew when it is full. It was opened for appending, so writing goes on at its new end. */
class BoundedFile {
  readonly #file: string;
  readonly #flush: () => void;
  #sizeBytes = fstatSync(STDERR).size;

  constructor(file: string, flush: () => void) {
    this.#file = file;
    this.#flush = flush;
  }

  /** Makes room for `bytes` more. */
  admit(bytes: number): void {
    if (this.#sizeBytes + bytes > LOG_FILE_BYTES_MAX) {
      this.#flush();
      copyFileSync(this.#file, `${this.#file}.1`);
      ftruncateSync(STDERR, 0);
      this.#sizeBytes = 0;
    }
    this.#sizeBytes += bytes;
  }
}

/** `12:30:05 info  job running  kind=train` from a line of JSON; a stack follows on its own lines. */
export function plainLine(line: string): string {
  const { time, level, msg, err, ...fields } = JSON.parse(line) as Readonly<Record<string, unknown>> & {
    readonly time: string;
    readonly level: string;
    readonly msg?: string;
    readonly err?: { readonly stack?: string };
  };
  const rest = Object.entries(fields).map(
    ([name, value]) => `${name}=${typeof value === 'string' ? value : JSON.stringify(value)}`,
  );
  const stack = err?.stack === undefined ? '' : `\n${err.stack}`;
  // A line may quote what a stranger sent: characters that steer the terminal are replaced.
  const words = [time.slice(11, 19), level.padEnd(5), msg ?? '', ...rest].join(' ').trimEnd();
  return `${words.replace(/\p{Cc}/gu, '?')}${stack}\n`;
}
