// Content-addressed uploads and downloads over HTTP. A blob is named by the SHA-256 of its bytes; the store checks the name
// before the blob exists. A client sends as fast as the store writes: a chunk is read when the one before is durable.

import type { IncomingMessage, ServerResponse } from 'node:http';
import { Readable } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import { GptdError } from '../../model/errors.ts';
import { CHUNK_BYTES_MAX } from '../../workers/store/messages.ts';
import { LIMITS } from '../protocol/fields.ts';
import type { StoreClient } from '../threads/store-client.ts';

/** Answers HEAD and GET, with 404 when there is no such blob. */
export async function sendBlob(
  store: StoreClient,
  hash: string,
  { request, response }: { request: IncomingMessage; response: ServerResponse },
): Promise<void> {
  const { sizeBytes } = await store.call('hasBlob', { hash });
  if (sizeBytes === null) throw new GptdError('not_found', `There is no blob sha256:${hash}.`);
  response.writeHead(200, { 'content-type': 'application/octet-stream', 'content-length': sizeBytes });
  if (request.method === 'HEAD') {
    response.end();
    return;
  }
  try {
    await pipeline(Readable.from(chunksOf(store, hash)), response);
  } catch (error) {
    // A client that leaves in the middle is no fault of ours.
    if ((error as NodeJS.ErrnoException).code !== 'ERR_STREAM_PREMATURE_CLOSE') throw error;
  }
}

async function* chunksOf(store: StoreClient, hash: string): AsyncGenerator<Uint8Array> {
  for (let index = 0; ; index++) {
    const { bytes } = await store.call('readBlobChunk', { hash, index });
    if (bytes === null) return;
    yield bytes;
  }
}

/** Answers PUT with 201, or with 200 when the blob was there already. Throws `corrupt` when the bytes have another digest. */
export async function receiveBlob(
  store: StoreClient,
  hash: string,
  { request, response }: { request: IncomingMessage; response: ServerResponse },
): Promise<void> {
  const announced = Number(request.headers['content-length'] ?? 0);
  if (announced > LIMITS.blobBytesMax) {
    throw new GptdError('limit_exceeded', `The blob has ${announced} bytes: at most ${LIMITS.blobBytesMax} are taken.`);
  }
  const known = await store.call('hasBlob', { hash });
  if (known.sizeBytes !== null) {
    request.resume();
    response.writeHead(200, { 'content-type': 'application/json' }).end(JSON.stringify({ sizeBytes: known.sizeBytes }));
    return;
  }
  const { uploadId } = await store.call('beginBlob', {});
  try {
    let received = 0;
    for await (const bytes of chunked(request)) {
      received += bytes.byteLength;
      if (received > LIMITS.blobBytesMax) throw new GptdError('limit_exceeded', 'The blob is too large.');
      await store.call('putBlobChunk', { uploadId, bytes });
    }
    const { sizeBytes } = await store.call('commitBlob', { uploadId, hash });
    response.writeHead(201, { 'content-type': 'application/json' }).end(JSON.stringify({ sizeBytes }));
  } catch (error) {
    await store.call('abortBlob', { uploadId });
    throw error;
  }
}

/** The body in pieces of CHUNK_BYTES_MAX, each in a buffer of its own. */
async function* chunked(request: IncomingMessage): AsyncGenerator<Uint8Array> {
  let [buffer, filled] = [new Uint8Array(CHUNK_BYTES_MAX), 0];
  for await (const part of request as AsyncIterable<Buffer>) {
    for (let at = 0; at < part.length;) {
      const taken = part.subarray(at, at + buffer.length - filled);
      buffer.set(taken, filled);
      at += taken.length;
      filled += taken.length;
      if (filled === buffer.length) {
        yield buffer;
        [buffer, filled] = [new Uint8Array(CHUNK_BYTES_MAX), 0];
      }
    }
  }
  if (filled > 0) yield buffer.slice(0, filled);
}
