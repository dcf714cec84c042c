// Errors on the wire have JSON-RPC's codes for faults of the envelope, one closed union of codes for all other faults, and a
// sentence.

import type { z } from 'zod';

export { ERROR_CODES, errorData, GptdError, type ErrorCode, type ErrorData } from '../../model/errors.ts';

/** The codes of JSON-RPC 2.0 for faults of the envelope. Every other fault is `application` with `data.code`. */
export const RPC_ERROR = {
  parse: -32700,
  invalidRequest: -32600,
  methodNotFound: -32601,
  invalidParams: -32602,
  application: -32000,
} as const;

export interface RpcError {
  readonly code: number;
  readonly message: string;
  readonly data?: { readonly code: string };
}

/** Describes the first value that a schema refused, as the end of a sentence. */
export function describeIssue(error: z.ZodError): string {
  const issue = error.issues.at(0);
  if (issue === undefined) return 'the value is invalid';
  const path = issue.path.map(String).join('.');
  return path === '' ? issue.message : `${path}: ${issue.message}`;
}
