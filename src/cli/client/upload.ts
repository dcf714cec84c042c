// Files reach the daemon as blobs that are named by their SHA-256, so a blob that the daemon already has is not sent again. Files
// are streamed and never held in memory.

import { createHash } from 'node:crypto';
import { createReadStream } from 'node:fs';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { basename } from 'node:path';
import { pipeline } from 'node:stream/promises';
import type { JobEvent } from '../../daemon/protocol/jobs.ts';
import { noDaemonAt, refusal, type Address } from './address.ts';
import { ClientFault } from './faults.ts';

/** Smaller files show no progress, because they are sent before anybody could read it. */
const PROGRESS_BYTES_MIN = 8 << 20;
const ERROR_BODY_BYTES_MAX = 64 << 10;

/** A regular file that exists and is not empty. */
export interface SourceFile {
  readonly path: string;
  readonly sizeBytes: number;
}

/** Is told how far a transfer is, with the data of a job's progress event. */
export type OnProgress = (progress: Extract<JobEvent, { type: 'progress' }>['data']) => void;

/** Makes sure that the daemon holds the file's bytes. Resolves to their SHA-256 as 64 hexadecimal digits. */
export async function uploadFile(
  file: SourceFile,
  { address, onProgress }: { readonly address: Address; readonly onProgress: OnProgress },
): Promise<string> {
  const counted = (phase: string) =>
    countedBy(onProgress, { phase: `${phase} ${basename(file.path)}`, totalBytes: file.sizeBytes });
  const hash = createHash('sha256');
  await pipeline(createReadStream(file.path), counted('hashing'), hash);
  const digest = hash.digest('hex');
  const path = `/v1/blobs/sha256:${digest}`;
  const head = await send(address, { method: 'HEAD', path });
  if (head.statusCode === 404) {
    const put = await send(address, { method: 'PUT', path, file, count: counted('uploading') });
    if (!isSuccess(put)) throw uploadRefused(address, { file, put });
  } else if (!isSuccess(head)) {
    throw refusal(address, head.statusCode);
  }
  return digest;
}

type ByteCounter = (source: AsyncIterable<Buffer>) => AsyncGenerator<Buffer>;

function countedBy(
  onProgress: OnProgress,
  { phase, totalBytes }: { readonly phase: string; readonly totalBytes: number },
): ByteCounter {
  return async function* (source) {
    let done = 0;
    for await (const chunk of source) {
      done += chunk.length;
      if (totalBytes >= PROGRESS_BYTES_MIN) onProgress({ phase, done, total: totalBytes, unit: 'bytes' });
      yield chunk;
    }
  };
}

interface Reply {
  readonly statusCode: number;
  readonly body: string;
}

interface Outgoing {
  readonly method: 'HEAD' | 'PUT';
  readonly path: string;
  readonly file?: SourceFile;
  readonly count?: ByteCounter;
}

const isSuccess = ({ statusCode }: Reply): boolean => statusCode >= 200 && statusCode < 300;

async function send(address: Address, { method, path, file, count }: Outgoing): Promise<Reply> {
  const request = (address.url.startsWith('https:') ? httpsRequest : httpRequest)(address.url + path, {
    method,
    // A connection kept for reuse could be closed by the daemon just as the next request is written.
    agent: false,
    headers: {
      ...(address.token === undefined ? {} : { authorization: `Bearer ${address.token}` }),
      ...(file === undefined ? {} : { 'content-length': file.sizeBytes, 'content-type': 'application/octet-stream' }),
    },
  });
  const reply = new Promise<Reply>((resolve, reject) => {
    request.once('response', (response) => {
      readBody(response).then((body) => resolve({ statusCode: response.statusCode ?? 0, body }), reject);
    });
    request.on('error', (cause) => reject(noDaemonAt(address.url, cause)));
  });
  if (file === undefined || count === undefined) {
    request.end();
    return reply;
  }
  // A daemon that refuses early replies and closes while bytes are still on their way, and its reply says more than the broken
  // pipe. A file that has grown since it was measured is cut by `end` at the length that was promised.
  const body = createReadStream(file.path, { end: file.sizeBytes - 1 });
  const [answer, sent] = await Promise.allSettled([reply, pipeline(body, count, request)]);
  if (answer.status === 'fulfilled') return answer.value;
  const cause: unknown = sent.status === 'rejected' ? sent.reason : answer.reason;
  throw new ClientFault(
    'failed',
    `The upload of ${file.path} broke off: ${cause instanceof Error ? cause.message : String(cause)}.`,
    { cause },
  );
}

async function readBody(response: IncomingMessage): Promise<string> {
  const chunks: Buffer[] = [];
  let lengthBytes = 0;
  for await (const chunk of response as AsyncIterable<Buffer>) {
    lengthBytes += chunk.length;
    if (lengthBytes <= ERROR_BODY_BYTES_MAX) chunks.push(chunk);
  }
  return Buffer.concat(chunks).toString('utf8');
}

/** Returns a fault with the daemon's own sentence, when its reply carries one. */
function uploadRefused(
  address: Address,
  { file, put }: { readonly file: SourceFile; readonly put: Reply },
): ClientFault {
  if (put.statusCode === 401 || put.statusCode === 403) return refusal(address, put.statusCode);
  let sentence = `HTTP status ${put.statusCode}`;
  try {
    const { error } = JSON.parse(put.body) as { readonly error?: string | { readonly message?: string } };
    sentence = (typeof error === 'string' ? error : error?.message) ?? sentence;
  } catch {
    // The reply is not JSON, so the message names the status only.
  }
  return new ClientFault('refused', `The daemon did not take ${file.path}: ${sentence}`);
}
