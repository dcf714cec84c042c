// `gptd inspect` tells what a file of weights or of token ids holds, from its header alone. It needs no daemon and reads no
// tensor.

import { closeSync, openSync, readSync, statSync } from 'node:fs';
import path from 'node:path';
import { readdir, readFile } from 'node:fs/promises';
import { GptdError } from '../model/errors.ts';
import { GGUF_MAGIC } from '../model/formats/gguf.ts';
import { configFromHuggingFace } from '../model/formats/hf-config.ts';
import { parseSafetensorsHeader, SAFETENSORS_HEADER_BYTES_MAX } from '../model/formats/safetensors.ts';
import { LLMC_HEADER_BYTES, readTokenFile } from '../model/formats/token-files.ts';
import { readGgufHeader, readOnnxHeader, type HeaderTensor } from '../model/formats/weights-header.ts';
import type { InspectedFile, Inspection } from '../daemon/protocol/interchange.ts';

const EXTENSIONS = ['.safetensors', '.gguf', '.onnx', '.bin'];

/**
 * Inspects a file, or the files of weights in a directory and one folder below it, such as `onnx`. Throws `not_found`, `corrupt`
 * or `incompatible`.
 */
export async function inspectPath(target: string): Promise<Inspection> {
  const stats = statSync(target, { throwIfNoEntry: false });
  if (stats === undefined) throw new GptdError('not_found', `There is no file or directory ${target}.`);
  const names = stats.isDirectory()
    ? (await readdir(target, { recursive: true }))
        .filter((name) => EXTENSIONS.includes(path.extname(name)) && name.split(path.sep).length <= 2)
        .sort()
        .map((name) => path.join(target, name))
    : [target];
  if (names.length === 0) {
    throw new GptdError('not_found', `There are no files of weights in ${target}: ${EXTENSIONS.join(', ')} are known.`);
  }
  const files = names.map(inspectFile);
  const directory = stats.isDirectory() ? target : path.dirname(target);
  const tensors = files.flatMap((file) => file.tensors);
  return { path: target, files, architecture: await architectureOf(tensors, { files, directory }) };
}

function inspectFile(file: string): InspectedFile {
  const bytes = statSync(file).size;
  const descriptor = openSync(file, 'r');
  const read = (offset: number, length: number): Uint8Array => {
    const target = new Uint8Array(length);
    if (readSync(descriptor, target, 0, length, offset) !== length) {
      throw new GptdError('corrupt', `${file} became shorter while it was read.`);
    }
    return target;
  };
  try {
    return { path: file, bytes, ...contentOf(file, { read, bytes }) };
  } catch (error) {
    if (!(error instanceof GptdError)) throw error;
    // What would make a training job's request invalid is a fault of the file here.
    const code = error.code === 'invalid_spec' ? 'corrupt' : error.code;
    throw new GptdError(code, `${file}: ${error.message}`, { cause: error });
  } finally {
    closeSync(descriptor);
  }
}

function contentOf(
  file: string,
  { read, bytes }: { read: (offset: number, length: number) => Uint8Array; bytes: number },
): Omit<InspectedFile, 'path' | 'bytes'> {
  const start = bytes < 12 ? null : new DataView(read(0, 12).buffer);
  if (start?.getUint32(0, true) === GGUF_MAGIC) return weights('gguf', readGgufHeader(read, bytes));
  switch (path.extname(file)) {
    case '.safetensors': {
      const prefix = read(0, Math.min(bytes, SAFETENSORS_HEADER_BYTES_MAX + 8));
      return weights('safetensors', parseSafetensorsHeader(prefix, { fileBytes: bytes }));
    }
    case '.gguf':
      return weights('gguf', readGgufHeader(read, bytes));
    case '.onnx':
      return weights('onnx', readOnnxHeader(read, bytes));
    case '.bin': {
      if (path.basename(file).startsWith('pytorch_model')) {
        throw new GptdError('incompatible', "PyTorch's pickled weights are not read: convert them to safetensors.");
      }
      const prefix = read(0, Math.min(bytes, LLMC_HEADER_BYTES));
      const { headerBytes, tokenCount: tokens } = readTokenFile(prefix, { fileBytes: bytes });
      const format = headerBytes > 0 ? 'llm.c tokens' : 'tokens';
      return { format, tensors: [], parameters: 0, metadata: { tokens } };
    }
    default:
      throw new GptdError('incompatible', `The format is unknown: ${EXTENSIONS.join(', ')} are read.`);
  }
}

function weights(
  format: InspectedFile['format'],
  { tensors, metadata }: { tensors: readonly HeaderTensor[]; metadata: Readonly<Record<string, unknown>> },
): Omit<InspectedFile, 'path' | 'bytes'> {
  const shown = tensors.map(({ name, dtype, shape }) => ({ name, dtype, shape }));
  const sizes = shown.map(({ shape }) => shape.reduce((product, length) => product * length, 1));
  return { format, tensors: shown, parameters: sizes.reduce((sum, size) => sum + size, 0), metadata };
}

/** Says which model the tensors belong to: a configuration that an import would take, or the reason why it would not. */
async function architectureOf(
  tensors: readonly HeaderTensor[],
  { files, directory }: { files: readonly InspectedFile[]; directory: string },
): Promise<string> {
  const named = files.find(({ metadata }) => typeof metadata['general.architecture'] === 'string');
  if (named !== undefined) return String(named.metadata['general.architecture']);
  if (files.some(({ format }) => format === 'tokens' || format === 'llm.c tokens')) return 'token ids';
  if (files.some(({ format }) => format === 'onnx')) {
    const inputs = files.flatMap(({ metadata }) => (metadata['inputs'] ?? []) as string[]);
    return inputs.includes('past_key_values.0.key') ? 'a causal language model with a cache' : 'unknown';
  }
  const config = await readFile(path.join(directory, 'config.json'), 'utf8').catch(() => null);
  try {
    const json: unknown = config === null ? null : JSON.parse(config);
    // One head divides every width, so the tensors are read as with one. Their number of heads is not known, and not shown.
    const { config: found } = configFromHuggingFace({ json, tensors, headCount: json === null ? 1 : undefined });
    const heads = json === null ? '' : `, ${found.n_heads} heads`;
    return `gpt2: vocab ${found.vocab_size}, context ${found.context_length}, width ${found.emb_dim}${heads}, ${found.n_layers} blocks${found.tie_weights ? ', tied' : ''}`;
  } catch (error) {
    return `unknown: ${(error as Error).message}`;
  }
}
