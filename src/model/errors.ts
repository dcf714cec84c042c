// The one error type for faults of the world: bad input, full queues, corrupt data. Its codes are the closed union of the
// wire contract. Bugs are not of this type: they are asserted and fail loudly.

export const ERROR_CODES = [
  'invalid_spec',
  'not_found',
  'conflict',
  'queue_full',
  'limit_exceeded',
  'unauthorized',
  'shutting_down',
  'corrupt',
  'incompatible',
  'out_of_memory',
  'engine_failed',
  'cancelled',
] as const;

export type ErrorCode = (typeof ERROR_CODES)[number];

/** A fault of the world, with a sentence that says what was wrong and what was wanted. */
export class GptdError extends Error {
  readonly code: ErrorCode;

  constructor(code: ErrorCode, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'GptdError';
    this.code = code;
  }
}

/** The disk has no room for some work. The work can be done as soon as `freeBytesNeeded` bytes are free. */
export class DiskFull extends GptdError {
  readonly freeBytesNeeded: number;

  constructor(message: string, freeBytesNeeded: number, options?: ErrorOptions) {
    super('limit_exceeded', message, options);
    this.name = 'DiskFull';
    this.freeBytesNeeded = freeBytesNeeded;
  }
}

/** The plain form of an error that crosses a thread or a socket. */
export interface ErrorData {
  readonly code: ErrorCode;
  readonly message: string;
}

/** Returns the plain form of an error. An error without a known code is a bug or a fault of the engine: `engine_failed`. */
export function errorData(error: unknown): ErrorData {
  const message = error instanceof Error ? error.message : String(error);
  const code = (error as { code?: unknown } | null)?.code;
  return { code: ERROR_CODES.find((known) => known === code) ?? 'engine_failed', message };
}

/** Throws a plain Error unless `condition` holds. A failed assertion is a bug, not a fault of the world. */
export function assert(condition: unknown, message: string): asserts condition {
  if (!condition) throw new Error(`assertion failed: ${message}`);
}
