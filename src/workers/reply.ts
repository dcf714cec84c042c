// The envelopes between threads: which calls a thread answers, what moves with a request and with a reply instead of being
// copied, and how a thread answers. A thrown error loses its `code` on the way between threads, because structured clone keeps
// only the name, message and stack; so the world's faults travel as data and bugs as thrown errors.

import { isNativeError } from 'node:util/types';
import type { MessagePort } from 'node:worker_threads';
import { move, transferableSymbol, valueSymbol } from 'piscina';
import { DiskFull, GptdError, type ErrorData } from '../model/errors.ts';

/** The calls of a thread: name -> [request, reply]. */
export type CallsOf<C> = { [K in keyof C]: readonly [object, object] };

/** The requests of a thread: a union on their `type`. */
export type RequestOf<C extends CallsOf<C>> = {
  readonly [K in keyof C]: { readonly type: K } & C[K][0];
}[keyof C];

/** What a message hands over: arrays, each with the whole buffer behind it, and ports; null stands for nothing. */
export type Moved = readonly (ArrayBufferView | MessagePort | null)[];

/** The arrays and ports in a message that can move. Arrays that are in shared memory by their type stay where they are. */
type Movable<T> = T extends MessagePort | ArrayBuffer
  ? T
  : T extends ArrayBufferView
    ? T extends ArrayBufferView<SharedArrayBuffer>
      ? never
      : T
    : T extends readonly (infer Item)[] | ReadonlyMap<unknown, infer Item> | ReadonlySet<infer Item>
      ? Movable<Item>
      : T extends (...args: never[]) => unknown
        ? never
        : T extends object
          ? { [K in keyof T]-?: Movable<T[K]> }[keyof T]
          : never;

/**
 * By call, what its request (side 0) or its reply (side 1) hands over. Every message that holds something movable has an entry.
 */
export type Moves<C extends CallsOf<C>, Side extends 0 | 1> = {
  readonly [K in keyof C]?: (message: C[K][Side]) => Moved;
} & {
  readonly [K in keyof C as [Movable<C[K][Side]>] extends [never] ? never : K]: (message: C[K][Side]) => Moved;
};

/** What both ends of a thread know beside the types of its calls. */
export interface ThreadContract<C extends CallsOf<C>> {
  /** The thread's entry within `src`, without its ending. */
  readonly file: string;
  readonly requests: Moves<C, 0>;
  readonly replies: Moves<C, 1>;
}

/** A fault on its way between threads. */
interface FaultData extends ErrorData {
  /** Set for a DiskFull. */
  readonly freeBytesNeeded?: number;
}

export type Reply<T> = { readonly ok: true; readonly value: T } | { readonly ok: false; readonly error: FaultData };

/**
 * A piscina handler around `handle`: a GptdError becomes a reply, any other error rejects at the caller with its stack.
 * This thread must not touch afterwards what a reply hands over.
 */
export function replying<C extends CallsOf<C>, Value extends C[keyof C][1]>(
  handle: (request: RequestOf<C>) => Value | Promise<Value>,
  { replies }: Pick<ThreadContract<C>, 'replies'>,
): (request: RequestOf<C>) => Promise<Reply<Value>> {
  return async (request) => {
    try {
      const value = await handle(request);
      // The value is the reply to a request of this type.
      const moved = replies[request.type] as ((value: Value) => Moved) | undefined;
      return moving({ ok: true, value }, transferList(moved?.(value)));
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
function moving<T>(reply: Reply<T>, transferred: readonly (ArrayBuffer | MessagePort)[]): Reply<T> {
  if (transferred.length === 0) return reply;
  return move({ [transferableSymbol]: transferred, [valueSymbol]: reply }) as unknown as Reply<T>;
}

/** The value of a reply. Throws its GptdError, with the code, on the caller's side. */
export function unwrap<T>(reply: Reply<T>): T {
  if (reply.ok) return reply.value;
  const { code, message, freeBytesNeeded } = reply.error;
  throw freeBytesNeeded === undefined ? new GptdError(code, message) : new DiskFull(message, freeBytesNeeded);
}

/**
 * What has to be transferred for `moved`: the ports and the distinct buffers behind the arrays. Shared memory is left out, and so
 * are small Buffers, which are copied: they lie in Node's pool, which belongs to everybody.
 */
export function transferList(moved: Moved = []): (ArrayBuffer | MessagePort)[] {
  const transferred = new Set<ArrayBuffer | MessagePort>();
  for (const item of moved) {
    if (item === null) continue;
    if (!ArrayBuffer.isView(item)) {
      transferred.add(item);
      continue;
    }
    const pooled = Buffer.isBuffer(item) && item.buffer.byteLength === Buffer.poolSize;
    if (item.buffer instanceof ArrayBuffer && !pooled) transferred.add(item.buffer);
  }
  return [...transferred];
}
