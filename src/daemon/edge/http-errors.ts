// Errors as HTTP tells them: a status for each code of the wire contract, and a body in the shape that clients of OpenAI's API
// read, with gptd's own code in it.

import { errorData, type ErrorCode } from '../../model/errors.ts';

export const HTTP_STATUS: Readonly<Record<ErrorCode, number>> = {
  invalid_spec: 400,
  not_found: 404,
  conflict: 409,
  queue_full: 429,
  limit_exceeded: 413,
  unauthorized: 401,
  shutting_down: 503,
  corrupt: 422,
  incompatible: 422,
  out_of_memory: 507,
  engine_failed: 500,
  cancelled: 499,
};

export interface ErrorBody {
  readonly error: {
    readonly message: string;
    readonly type: 'invalid_request_error' | 'rate_limit_error' | 'server_error';
    /** The field that was at fault, where one was. */
    readonly param: string | null;
    readonly code: ErrorCode;
  };
}

export function errorBody(error: unknown): ErrorBody {
  const { code, message } = errorData(error);
  const status = HTTP_STATUS[code];
  const client = status === 429 ? 'rate_limit_error' : 'invalid_request_error';
  const param = (error as { param?: string } | null)?.param ?? null;
  return { error: { message, type: status >= 499 ? 'server_error' : client, param, code } };
}
