// Weights from uploaded safetensors files, in pieces and in table order. Everything about names, shapes and types is checked
// before the first tensor is read; values are checked as they pass. At most a piece of a tensor is in memory.

import type { GptConfig } from '../../model/config.ts';
import { GptdError } from '../../model/errors.ts';
import { configFromHuggingFace, type HuggingFaceModel } from '../../model/formats/hf-config.ts';
import {
  isWeightDtype,
  parseSafetensorsHeader,
  SAFETENSORS_HEADER_BYTES_MAX,
  toFloat32,
  type SafetensorsHeader,
  type SafetensorsTensor,
} from '../../model/formats/safetensors.ts';
import { DTYPE_BYTES, tensorTable } from '../../model/tensors.ts';
import type { TokenizerSpec } from '../../model/text/tokenizer.ts';
import type { ChunkReader } from '../store/reader.ts';
import { parseJson, readTokenizer } from './import-tokenizer.ts';
import { CHUNK_BYTES_MAX, type TensorChunk } from '../store/messages.ts';
import type { PreparerCalls } from './messages.ts';

/** A longer JSON file beside the weights is refused: a configuration or the index of shards. */
const JSON_BYTES_MAX = 4 << 20;
const WEIGHTS_FILE = 'model.safetensors';
const INDEX_FILE = 'model.safetensors.index.json';

export interface ImportSource {
  readonly config: GptConfig;
  readonly tokenizer: TokenizerSpec | null;
  readonly notes: readonly string[];
  readonly chunks: Iterable<TensorChunk>;
}

/** A tensor and the blob that it lies in. */
interface PlacedTensor extends SafetensorsTensor {
  readonly blob: string;
}

type Files = PreparerCalls['importBegin'][0]['files'];

/** Throws `corrupt` or `incompatible` with the tensor's name and, where it is about them, both shapes. */
export async function openImport(
  reader: ChunkReader,
  { files, headCount }: { files: Files; headCount: number | null },
): Promise<ImportSource> {
  const { tensors, metadata } = readHeaders(reader, files);
  const json = 'config.json' in files ? readJson(reader, { files, name: 'config.json' }) : ownConfig(metadata);
  const model = configFromHuggingFace({ json, tensors, headCount: headCount ?? undefined });
  const byName = new Map(tensors.map((tensor) => [tensor.name, tensor]));
  const config = withoutFilledBias(json, { model, isZero: (name) => isZero(reader, byName.get(name)!) });
  checkDtypes(config, { model, byName });
  checkSpareHead(reader, { model, byName });
  const { tokenizer, notes } = await readTokenizer(reader, { files, json, config });

  function* chunks(): Generator<TensorChunk> {
    for (const { name } of tensorTable(config)) {
      let offsetBytes = 0;
      for (const values of piecesOf(reader, byName.get(model.rename.get(name)!)!)) {
        const wild = values.findIndex((value) => !Number.isFinite(value));
        if (wild >= 0) {
          const at = offsetBytes / DTYPE_BYTES.float32 + wild;
          throw new GptdError(
            'corrupt',
            `Tensor ${name} holds ${values[wild]} at value ${at}: weights must be finite.`,
          );
        }
        const bytes = new Uint8Array(values.buffer, values.byteOffset, values.byteLength);
        yield { tensor: name, part: 'w', offsetBytes, bytes };
        offsetBytes += bytes.length;
      }
    }
  }
  return { config, tokenizer, notes, chunks: chunks() };
}

// ---- Headers ---------------------------------------------------------------------------------------------------------

function readHeaders(
  reader: ChunkReader,
  files: Files,
): { readonly tensors: readonly PlacedTensor[]; readonly metadata: SafetensorsHeader['metadata'] } {
  const header = (name: string): SafetensorsHeader => {
    const fileBytes = reader.blobSize(files[name]);
    const length = Math.min(fileBytes, SAFETENSORS_HEADER_BYTES_MAX + 8);
    try {
      return parseSafetensorsHeader(reader.readBlobRange({ hash: files[name], offset: 0, length }), { fileBytes });
    } catch (error) {
      if (!(error instanceof GptdError)) throw error;
      throw new GptdError(error.code, `${name}: ${error.message}`, { cause: error });
    }
  };
  const placed = (name: string): PlacedTensor[] =>
    header(name).tensors.map((tensor) => ({ ...tensor, blob: files[name] }));
  if (WEIGHTS_FILE in files) return { tensors: placed(WEIGHTS_FILE), metadata: header(WEIGHTS_FILE).metadata };

  const { weight_map: map } = (readJson(reader, { files, name: INDEX_FILE }) ?? {}) as { weight_map?: unknown };
  if (typeof map !== 'object' || map === null) throw corrupt(`${INDEX_FILE} has no weight_map.`);
  const shardOf = new Map(Object.entries(map as Record<string, unknown>));
  const tensors: PlacedTensor[] = [];
  for (const shard of new Set(shardOf.values())) {
    if (typeof shard !== 'string' || !Object.hasOwn(files, shard)) {
      throw corrupt(`${INDEX_FILE} names the shard ${JSON.stringify(shard)}, which is not among the files.`);
    }
    for (const tensor of placed(shard)) {
      if (shardOf.get(tensor.name) !== shard) {
        throw corrupt(`Tensor ${tensor.name} is in ${shard}, where ${INDEX_FILE} does not place it.`);
      }
      shardOf.delete(tensor.name);
      tensors.push(tensor);
    }
  }
  for (const [name, shard] of shardOf) throw corrupt(`Tensor ${name} is not in ${String(shard)}, where it should be.`);
  return { tensors, metadata: {} };
}

/** The configuration that an export of ours carries in its header. */
function ownConfig(metadata: SafetensorsHeader['metadata']): unknown {
  return 'config' in metadata ? parseJson(metadata['config'], 'The configuration in the header') : null;
}

/** A small JSON file of the import. */
function readJson(reader: ChunkReader, { files, name }: { files: Files; name: string }): unknown {
  const size = reader.blobSize(files[name]);
  if (size > JSON_BYTES_MAX) {
    throw new GptdError('limit_exceeded', `${name} has ${size} bytes: it may have at most ${JSON_BYTES_MAX}.`);
  }
  return parseJson(new TextDecoder().decode(reader.readBlob(files[name])), name);
}

// ---- Checks of values --------------------------------------------------------------------------------------------------

/**
 * GPT-2's classes elsewhere always have a bias of q, k and v: an export of a model without one carries zeros and says so
 * in its configuration. They are dropped again, unless somebody trained them meanwhile.
 */
function withoutFilledBias(
  json: unknown,
  { model, isZero }: { model: HuggingFaceModel; isZero: (name: string) => boolean },
): GptConfig {
  const { gptd } = (json ?? {}) as { gptd?: { qkv_bias?: unknown } | null };
  if (gptd?.qkv_bias !== false || !model.config.qkv_bias) return model.config;
  const biases = [...model.rename].filter(([name]) => name.endsWith('.attn.c_attn.bias'));
  return { ...model.config, qkv_bias: !biases.every(([, name]) => isZero(name)) };
}

function isZero(reader: ChunkReader, tensor: PlacedTensor): boolean {
  for (const values of piecesOf(reader, tensor)) if (values.some((value) => value !== 0)) return false;
  return true;
}

function checkDtypes(
  config: GptConfig,
  { model, byName }: { model: HuggingFaceModel; byName: ReadonlyMap<string, PlacedTensor> },
): void {
  const names = tensorTable(config).map(({ name }) => model.rename.get(name)!);
  for (const name of model.spareHead === null ? names : [...names, model.spareHead]) {
    const { dtype, shape } = byName.get(name)!;
    if (isWeightDtype(dtype)) continue;
    throw new GptdError(
      'incompatible',
      `Tensor ${name} of shape (${shape.join(', ')}) has type ${dtype}: weights must be F32, F16 or BF16.`,
    );
  }
}

/** A tied model's own copy of the head is left out, so it must be a copy. */
function checkSpareHead(
  reader: ChunkReader,
  { model, byName }: { model: HuggingFaceModel; byName: ReadonlyMap<string, PlacedTensor> },
): void {
  if (model.spareHead === null) return;
  const [head, embedding] = [byName.get(model.spareHead)!, byName.get(model.rename.get('wte.weight')!)!];
  const shapes = [head, embedding].map(({ shape }) => `(${shape.join(', ')})`);
  const isCopy = shapes[0] === shapes[1] && isSame(piecesOf(reader, head), piecesOf(reader, embedding));
  if (isCopy) return;
  throw new GptdError(
    'incompatible',
    `The configuration ties ${head.name} ${shapes[0]} to ${embedding.name} ${shapes[1]}, but they differ: set tie_word_embeddings to false, or take ${head.name} out.`,
  );
}

/** Whether two tensors of one shape have the same values; their pieces are equally long whatever their types. */
function isSame(a: Iterator<Float32Array>, b: Iterator<Float32Array>): boolean {
  for (;;) {
    const [one, other] = [a.next(), b.next()];
    if (one.done === true || other.done === true) return one.done === other.done;
    if (!one.value.every((value, i) => Object.is(value, other.value[i]))) return false;
  }
}

/** A tensor's values in pieces that are as large as a chunk when they are floats. */
function* piecesOf(
  reader: ChunkReader,
  { blob, begin, end, dtype }: PlacedTensor,
): Generator<Float32Array<ArrayBuffer>> {
  const pieceBytes = dtype === 'F32' ? CHUNK_BYTES_MAX : CHUNK_BYTES_MAX / 2;
  for (let offset = begin; offset < end; offset += pieceBytes) {
    const length = Math.min(pieceBytes, end - offset);
    yield toFloat32(reader.readBlobRange({ hash: blob, offset, length }), dtype);
  }
}

const corrupt = (message: string): GptdError => new GptdError('corrupt', message);
