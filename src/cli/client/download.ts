// Blobs become files. Each blob is streamed under another name beside its place and compared with its digest, and all files are
// renamed when the last one is there. So a directory never holds half an export.

import { createHash } from 'node:crypto';
import { createWriteStream } from 'node:fs';
import { mkdir, rename, rm } from 'node:fs/promises';
import { get as httpGet, type IncomingMessage } from 'node:http';
import { get as httpsGet } from 'node:https';
import { dirname, join } from 'node:path';
import { Transform } from 'node:stream';
import { pipeline } from 'node:stream/promises';
import type { ExportedFile } from '../../daemon/protocol/interchange.ts';
import { noDaemonAt, refusal, type Address } from './address.ts';
import { ClientFault } from './faults.ts';
import type { OnProgress } from './upload.ts';

/** The names that a daemon may give to files: at most one folder deep, and never outside the target. */
const NAME_PATTERN = /^(?:[A-Za-z0-9][\w.-]*\/)?[A-Za-z0-9][\w.-]*$/;

/** Where an export goes: all files go below a directory, or the weights alone go to one file. */
export interface Target {
  readonly path: string;
  readonly isFile: boolean;
}

/** Fetches the files to the target and resolves to their paths. After a failure the incomplete files are removed. */
export async function downloadFiles(
  files: readonly ExportedFile[],
  {
    target,
    address,
    onProgress,
  }: { readonly target: Target; readonly address: Address; readonly onProgress: OnProgress },
): Promise<readonly string[]> {
  const wanted = (target.isFile ? files.slice(0, 1) : files).map((file) => {
    if (!NAME_PATTERN.test(file.name)) {
      throw new ClientFault(
        'failed',
        `The daemon names a file ${JSON.stringify(file.name)}: such a name is not accepted.`,
      );
    }
    const path = target.isFile ? target.path : join(target.path, file.name);
    return { ...file, path, part: `${path}.part-${process.pid}` };
  });
  try {
    for (const file of wanted) {
      await mkdir(dirname(file.path), { recursive: true });
      await download(file, { address, onProgress });
    }
    for (const { part, path } of wanted) await rename(part, path);
  } finally {
    for (const { part } of wanted) await rm(part, { force: true });
  }
  return wanted.map(({ path }) => path);
}

async function download(
  { name, digest, bytes, part }: ExportedFile & { readonly part: string },
  { address, onProgress }: { readonly address: Address; readonly onProgress: OnProgress },
): Promise<void> {
  const response = await request(address, `/v1/blobs/${digest}`);
  if (response.statusCode !== 200) {
    response.resume();
    throw refusal(address, response.statusCode ?? 0);
  }
  const hash = createHash('sha256');
  let done = 0;
  const counted = new Transform({
    transform(chunk: Buffer, _encoding, next) {
      hash.update(chunk);
      done += chunk.length;
      onProgress({ phase: `downloading ${name}`, done, total: bytes, unit: 'bytes' });
      next(null, chunk);
    },
  });
  try {
    await pipeline(response, counted, createWriteStream(part));
  } catch (cause) {
    throw new ClientFault('failed', `The download of ${name} broke off: ${(cause as Error).message}.`, { cause });
  }
  if (`sha256:${hash.digest('hex')}` !== digest) {
    throw new ClientFault('failed', `The download of ${name} is damaged: its digest is not ${digest}.`);
  }
}

function request(address: Address, path: string): Promise<IncomingMessage> {
  const headers = address.token === undefined ? {} : { authorization: `Bearer ${address.token}` };
  return new Promise((resolve, reject) => {
    (address.url.startsWith('https:') ? httpsGet : httpGet)(
      address.url + path,
      { agent: false, headers },
      resolve,
    ).once('error', (cause) => reject(noDaemonAt(address.url, cause)));
  });
}
