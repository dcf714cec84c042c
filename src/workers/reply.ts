// The envelope in which a worker thread answers. A thrown error loses its `code` on the way between threads, because
// structured clone keeps only the name, message and stack; so the world's faults travel as data and bugs as thrown errors.

import { isNativeError } from 'node:util/types';
import { MessagePort } from 'node:worker_threads';
import { move, transferableSymbol, valueSymbol } from 'piscina';
import { DiskFull, GptdError, type ErrorData } from '../model/errors.ts';

/** A fault on its way between threads. */
interface FaultData extends ErrorData {
  /** Of a DiskFull. */
  readonly freeBytesNeeded?: number;
}

export type Reply<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly error: FaultData };

/**
 * A piscina handler around `handle`: a GptdError becomes a reply, any other error rejects at the caller with its stack.
 * `transfer` names the buffers of a value that leave with it, each once; this thread must not touch them afterwards.
 */
export function replying<Request, T>(
  handle: (request: Request) => T | Promise<T>,
  { transfer = () => [] }: { readonly transfer?: (value: T) => readonly ArrayBuffer[] } = {},
): (request: Request) => Promise<Reply<T>> {
  return async (request) => {
    try {
      const value = await handle(request);
      return moving({ ok: true, value }, transfer(value));
    } catch (error) {
      if (!(error instanceof GptdError)) throw asNativeError(error);
      const { code, message } = error;
      const needed = error instanceof DiskFull ? { freeBytesNeeded: error.freeBytesNeeded } : {};
      return { ok: false, error: { code, message, ...needed } };
    }
  };
}

/** Structured clone takes only V8's own errors for errors: a SqliteError would arrive as an object without a message. */
function asNativeError(error: unknown): Error {
  if (isNativeError(error)) return error;
  if (!(error instanceof Error)) return new Error(String(error));
  const { name, message, stack } = error;
  return Object.assign(new Error(`${name}: ${message}`), { stack });
}

/** piscina replaces what `move` returns by its value when it posts the reply: hence the type of the value. */
function moving<T>(reply: Reply<T>, buffers: readonly ArrayBuffer[]): Reply<T> {
  if (buffers.length === 0) return reply;
  return move({ [transferableSymbol]: buffers, [valueSymbol]: reply }) as unknown as Reply<T>;
}

/** The value of a reply. Throws its GptdError, with the code, on the caller's side. */
export function unwrap<T>(reply: Reply<T>): T {
  if (reply.ok) return reply.value;
  const { code, message, freeBytesNeeded } = reply.error;
  throw freeBytesNeeded === undefined ? new GptdError(code, message) : new DiskFull(message, freeBytesNeeded);
}

/**
 * The distinct buffers behind `arrays`, to be transferred. Left out, and so copied: shared memory, and small Buffers that
 * lie in Node's pool, which belongs to everybody.
 */
export function transferableBuffers(arrays: readonly ArrayBufferView[]): ArrayBuffer[] {
  const buffers = new Set<ArrayBuffer>();
  for (const array of arrays) {
    const pooled = Buffer.isBuffer(array) && array.buffer.byteLength === Buffer.poolSize;
    if (array.buffer instanceof ArrayBuffer && !pooled) buffers.add(array.buffer);
  }
  return [...buffers];
}

/** The arrays among a message's fields and the chunks that it lists: what a thread hands over with the message. */
export function arraysOf(message: object): ArrayBufferView[] {
  const fields = Object.values(message).flatMap((field: unknown) =>
    Array.isArray(field) ? chunkBytes(field) : [field],
  );
  return fields.filter((field): field is ArrayBufferView => ArrayBuffer.isView(field));
}

/** The ports that a message lists: they leave with it. */
export function portsOf(message: object): MessagePort[] {
  const listed = Object.values(message).filter((field): field is unknown[] => Array.isArray(field));
  return listed.flat().filter((item): item is MessagePort => item instanceof MessagePort);
}

function chunkBytes(list: readonly unknown[]): unknown[] {
  return list.map((item) => (typeof item === 'object' && item !== null && 'bytes' in item ? item.bytes : null));
}
