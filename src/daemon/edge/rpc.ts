// JSON-RPC 2.0: from a text frame to a method's result. Parameters are parsed here, once; what is behind trusts them. Jobs'
// events are not answers and go another way: see subscriptions.ts.

import type { z } from 'zod';
import { errorData, GptdError } from '../../model/errors.ts';
import { describeIssue, RPC_ERROR } from '../protocol/errors.ts';
import { JOB_SPECS, type JobKind, type JobSpecs } from '../protocol/kinds.ts';
import { METHODS, rpcRequest, type Handlers, type MethodName, type RpcResponse } from '../protocol/methods.ts';

type Id = string | number | null;

/** What a frame with a valid request asks. */
export interface Question {
  readonly id: Id;
  readonly method: string;
  readonly params: unknown;
  /** Whether the request is a notification, which gets no answer. */
  readonly isNotification: boolean;
}

const failure = (id: Id, code: number, message: string, dataCode?: string): RpcResponse => ({
  jsonrpc: '2.0',
  id,
  error: { code, message, ...(dataCode === undefined ? {} : { data: { code: dataCode } }) },
});

const isMethod = (name: string): name is MethodName => Object.hasOwn(METHODS, name);

/** What a frame asks, or the answer to a frame that is no request. It never throws. */
export function readFrame(text: string): Question | RpcResponse {
  let message: unknown;
  try {
    message = JSON.parse(text);
  } catch {
    return failure(null, RPC_ERROR.parse, 'The message is not JSON.');
  }
  const parsed = rpcRequest.safeParse(message);
  if (!parsed.success) {
    const offered = (message as { id?: unknown } | null)?.id;
    const id = typeof offered === 'string' || typeof offered === 'number' ? offered : null;
    return failure(id, RPC_ERROR.invalidRequest, `Not a JSON-RPC 2.0 request: ${describeIssue(parsed.error)}.`);
  }
  const { id, method, params } = parsed.data;
  return { id: id ?? null, method, params, isNotification: id === undefined };
}

/** Calls the handler and makes the answer of its result or its error. It never throws. */
export async function answer({ id, method, params }: Question, handlers: Handlers): Promise<RpcResponse> {
  if (!isMethod(method)) return failure(id, RPC_ERROR.methodNotFound, `There is no method "${method}".`);
  const schema: z.ZodType = METHODS[method];
  const parsed = schema.safeParse(params);
  if (!parsed.success) return failure(id, RPC_ERROR.invalidParams, `${method}: ${describeIssue(parsed.error)}.`);
  try {
    const handler = handlers[method] as (params: unknown) => Promise<unknown>;
    return { jsonrpc: '2.0', id, result: await handler(parsed.data) };
  } catch (error) {
    const { code, message } = errorData(error);
    return failure(id, RPC_ERROR.application, message, code);
  }
}

/** Parses a spec by its kind's schema, which fills in the defaults. Throws `invalid_spec` with one sentence. */
export function parseSpec<K extends JobKind>(kind: K, spec: unknown): JobSpecs[K] {
  const schema: z.ZodType = JOB_SPECS[kind];
  const parsed = schema.safeParse(spec);
  if (!parsed.success)
    throw new GptdError('invalid_spec', `The ${kind} spec is refused: ${describeIssue(parsed.error)}.`);
  return parsed.data as JobSpecs[K];
}
