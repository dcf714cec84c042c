// Files reach the daemon as blobs named by their SHA-256: what it has already is not sent again. Files are streamed, never
// held in memory. The checks that need no daemon (the file is there, is a file, is not empty) come first and apart.

import { createHash } from 'node:crypto';
import { createReadStream, type Stats } from 'node:fs';
import { readFile, stat } from 'node:fs/promises';
import { request as httpRequest, type IncomingMessage } from 'node:http';
import { request as httpsRequest } from 'node:https';
import { basename, dirname, extname, join } from 'node:path';
import { pipeline } from 'node:stream/promises';
import { LIMITS, type DataFormat } from '../../daemon/protocol/fields.ts';
import { SHARD_PATTERN, TOKENIZER_FILES, WEIGHTS_FILE, WEIGHTS_INDEX_FILE } from '../../daemon/protocol/interchange.ts';
import { noDaemonAt, refusal, type Address } from './address.ts';
import { CliError, EXIT, usageError } from '../exit-codes.ts';
import type { ProgressLine } from '../render/progress-line.ts';
import { formatBytes, formatPhaseLine } from '../render/records.ts';

/** Smaller files are sent before a progress line could be read. */
const PROGRESS_BYTES_MIN = 8 << 20;
const ERROR_BODY_BYTES_MAX = 64 << 10;
/** Stands for a digest that is not known yet when a spec is checked. */
export const DIGEST_TO_COME = '0'.repeat(64);

/** A regular file that is there and not empty. */
export interface SourceFile {
  readonly path: string;
  readonly sizeBytes: number;
}

/** Throws a usage error unless `path` is a file with something in it. */
export async function checkSourceFile(path: string): Promise<SourceFile> {
  const stats = await statIfThere(path);
  if (stats === undefined) throw usageError(`There is no file ${path}.`);
  if (!stats.isFile())
    throw usageError(`${path} is ${stats.isDirectory() ? 'a directory' : 'no regular file'}: a file was wanted.`);
  if (stats.size === 0) throw usageError(`${path} is empty.`);
  if (stats.size > LIMITS.blobBytesMax) {
    throw usageError(
      `${path} is ${formatBytes(stats.size)}: a file must be at most ${formatBytes(LIMITS.blobBytesMax)}.`,
    );
  }
  return { path, sizeBytes: stats.size };
}

/** How the daemon shall read a data file: by its extension, but for `--tokenizer none`, under which all are token ids. */
export function dataFormatOf(path: string, tokenizer: string | undefined): DataFormat {
  if (tokenizer === 'none') return 'tokens';
  const extension = extname(path).toLowerCase();
  if (extension === '.bin') return 'tokens';
  return extension === '.jsonl' ? 'jsonl' : 'text';
}

/**
 * The files of an import by their name in the spec: `path` is a directory, or weights with other files beside them. Shards
 * are those that the index names.
 */
export async function importFilesOf(path: string): Promise<Readonly<Record<string, SourceFile>>> {
  const stats = await statIfThere(path);
  if (stats === undefined) throw usageError(`There is no file or directory ${path}.`);
  const directory = stats.isDirectory() ? path : dirname(path);
  const isIndex = basename(path).endsWith('.safetensors.index.json');
  if (!stats.isDirectory() && !isIndex && extname(path) !== '.safetensors') {
    throw usageError(
      `${basename(path)} cannot be imported: a directory with ${WEIGHTS_FILE} or a .safetensors file was wanted.`,
    );
  }
  const indexFile = isIndex ? path : join(directory, WEIGHTS_INDEX_FILE);
  const isThere = async (name: string): Promise<boolean> => (await statIfThere(join(directory, name))) !== undefined;
  const hasWeights = !stats.isDirectory() || (await isThere(WEIGHTS_FILE));
  const takesIndex = isIndex || (!hasWeights && (await isThere(WEIGHTS_INDEX_FILE)));
  if (!hasWeights && !takesIndex) {
    throw usageError(
      `${path} has no ${WEIGHTS_FILE} and no ${WEIGHTS_INDEX_FILE}: weights are read as safetensors, not as PyTorch's .bin or .pt.`,
    );
  }
  const files: Record<string, SourceFile> = {};
  if (takesIndex) {
    files[WEIGHTS_INDEX_FILE] = await checkSourceFile(indexFile);
    for (const shard of await shardsOf(indexFile)) files[shard] = await checkSourceFile(join(directory, shard));
  } else {
    files[WEIGHTS_FILE] = await checkSourceFile(stats.isDirectory() ? join(directory, WEIGHTS_FILE) : path);
  }
  for (const name of ['config.json', ...TOKENIZER_FILES]) {
    const file = join(directory, name);
    const there = await statIfThere(file);
    if (there?.isFile() === true && there.size > 0) files[name] = { path: file, sizeBytes: there.size };
  }
  return files;
}

async function shardsOf(indexFile: string): Promise<readonly string[]> {
  let map: unknown;
  try {
    ({ weight_map: map } = JSON.parse(await readFile(indexFile, 'utf8')) as { weight_map?: unknown });
  } catch (cause) {
    throw usageError(`${indexFile} is not JSON: ${(cause as Error).message}.`);
  }
  const shards = new Set(typeof map === 'object' && map !== null ? Object.values(map as Record<string, unknown>) : []);
  const bad = [...shards].find((shard) => typeof shard !== 'string' || !SHARD_PATTERN.test(shard));
  if (bad !== undefined || shards.size === 0) {
    throw usageError(`${indexFile} must map tensors to shards like model-00001-of-00002.safetensors.`);
  }
  return [...shards] as string[];
}

/** Makes sure that the daemon holds the file's bytes. Returns their SHA-256 as 64 hexadecimal digits. */
export async function uploadFile(
  file: SourceFile,
  options: { readonly address: Address; readonly progress: ProgressLine },
): Promise<string> {
  const { address, progress } = options;
  const counted = (phase: string) =>
    countedBy(progress, { phase: `${phase} ${basename(file.path)}`, totalBytes: file.sizeBytes });
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
  progress.clear();
  return digest;
}

type ByteCounter = (source: AsyncIterable<Buffer>) => AsyncGenerator<Buffer>;

function countedBy(
  progress: ProgressLine,
  options: { readonly phase: string; readonly totalBytes: number },
): ByteCounter {
  return async function* (source) {
    let done = 0;
    for await (const chunk of source) {
      done += chunk.length;
      const data = { phase: options.phase, done, total: options.totalBytes, unit: 'bytes' };
      if (options.totalBytes >= PROGRESS_BYTES_MIN) progress.update((drawing) => formatPhaseLine(data, drawing));
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
  // A daemon that refuses early answers and closes while bytes are still under way: its answer says more than the broken
  // pipe. `end` keeps a file that grew since it was measured to the length that was promised.
  const body = createReadStream(file.path, { end: file.sizeBytes - 1 });
  const [answer, sent] = await Promise.allSettled([reply, pipeline(body, count, request)]);
  if (answer.status === 'fulfilled') return answer.value;
  const cause: unknown = sent.status === 'rejected' ? sent.reason : answer.reason;
  throw new CliError(
    EXIT.jobFailed,
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

/** The daemon's own sentence when its answer carries one. */
function uploadRefused(address: Address, { file, put }: { readonly file: SourceFile; readonly put: Reply }): CliError {
  if (put.statusCode === 401 || put.statusCode === 403) return refusal(address, put.statusCode);
  let sentence = `HTTP status ${put.statusCode}`;
  try {
    const { error } = JSON.parse(put.body) as { readonly error?: string | { readonly message?: string } };
    sentence = (typeof error === 'string' ? error : error?.message) ?? sentence;
  } catch {
    // Not JSON: the status has to do.
  }
  return new CliError(EXIT.jobFailed, `The daemon did not take ${file.path}: ${sentence}`);
}

async function statIfThere(path: string): Promise<Stats | undefined> {
  try {
    return await stat(path);
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException;
    if (code === 'ENOENT' || code === 'ENOTDIR') return undefined;
    throw usageError(`${path} cannot be read: ${(error as Error).message}.`);
  }
}
