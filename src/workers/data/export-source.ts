// A checkpoint as the files of an export, piece by piece: the weights in table order, then what stands beside them. What is
// in memory is a piece, or one matrix of a block where a format wants it transposed. Nothing here writes: the daemon stores
// the pieces as blobs.

import { GptdError } from '../../model/errors.ts';
import {
  aligned,
  GGML_TYPES,
  ggufHeader,
  ggufTensorBytes,
  toQ4,
  toQ8,
  type GgmlType,
} from '../../model/formats/gguf.ts';
import { ggufMetadata, ggufTensors } from '../../model/formats/gguf-export.ts';
import { toHalf } from '../../model/formats/half.ts';
import { huggingFaceConfig, tokenizerFiles, type ExportedModel } from '../../model/formats/hf-export.ts';
import { encodeOnnxInPieces, ONNX_BYTES_MAX } from '../../model/programs/onnx.ts';
import { cachedModelGraph } from '../../model/formats/onnx-export.ts';
import { safetensorsHeader } from '../../model/formats/safetensors.ts';
import { tensorTable } from '../../model/tensors.ts';
import type { ChunkReader } from '../store/reader.ts';
import { CHUNK_BYTES_MAX, CHUNK_SIZE } from '../store/messages.ts';
import type { ExportPiece, PreparerCalls } from './messages.ts';

type Request = Omit<PreparerCalls['exportBegin'][0], 'source'>;

const PIECE_VALUES = CHUNK_SIZE;
const HUGGING_FACE_PREFIX = 'transformer.';

/** Files come one after the other, each in pieces in order. Throws `incompatible` or `limit_exceeded` before the first one. */
export async function openExport(reader: ChunkReader, request: Request): Promise<Iterable<ExportPiece>> {
  const weights = createWeights(reader, request);
  switch (request.format) {
    case 'safetensors': {
      const type = request.valueType === 'f16' ? 'f16' : 'f32';
      const config = huggingFaceConfig(request.model, { dtype: type === 'f16' ? 'float16' : 'float32' });
      return inOrder([
        ['model.safetensors', safetensors(weights, { model: request.model, config, type })],
        ['config.json', [json(config)]],
        ...(await besides(reader, request)),
      ]);
    }
    case 'gguf': {
      const header = await ggufMetadata(request.model, { name: request.name, type: request.valueType });
      const tensors = ggufTensors(request.model, request.valueType);
      const file = `${request.name}-${request.valueType}.gguf`;
      return inOrder([[file, gguf(weights, { head: ggufHeader(header, tensors), tensors })]]);
    }
    case 'onnx': {
      const { config } = request.model;
      const names = new Set(tensorTable(config).map(({ name }) => name));
      const { sizeBytes, pieces } = encodeOnnxInPieces(cachedModelGraph(config), {
        weights: names,
        piecesOf: (name) => mapped(weights.piecesOf(name), bytesOf),
      });
      if (sizeBytes > ONNX_BYTES_MAX) {
        throw new GptdError(
          'limit_exceeded',
          `An ONNX file holds ${ONNX_BYTES_MAX} bytes and this one would have ${sizeBytes}: take safetensors or gguf.`,
        );
      }
      return inOrder([
        ['onnx/model.onnx', pieces],
        ['config.json', [json(huggingFaceConfig(request.model, { dtype: 'float32' }))]],
        ...(await besides(reader, request)),
      ]);
    }
    default:
      return request.format satisfies never;
  }
}

/** About how many bytes the export will have: progress is measured by it. */
export function exportedBytes({ model, valueType }: Pick<Request, 'model' | 'valueType'>): number {
  const { blockValues, blockBytes } = GGML_TYPES[valueType];
  return tensorTable(model.config).reduce((sum, { size }) => sum + size * (blockBytes / blockValues), 0);
}

type Named = readonly [name: string, pieces: Iterable<Uint8Array>];

function* inOrder(files: readonly Named[]): Generator<ExportPiece> {
  for (const [file, pieces] of files) for (const bytes of pieces) yield { file, bytes: owned(bytes) };
}

/** A piece moves to the main thread, so it must not be a view of what others use. */
const owned = (bytes: Uint8Array): Uint8Array =>
  bytes.byteLength === bytes.buffer.byteLength ? bytes : new Uint8Array(bytes);

/** The tokenizer's files. Those that came with the model are preferred to those that we would write. */
async function besides(reader: ChunkReader, { model, kept }: Request): Promise<Named[]> {
  const files = new Map<string, Iterable<Uint8Array>>();
  for (const [name, text] of await tokenizerFiles(model)) files.set(name, [new TextEncoder().encode(text)]);
  for (const { name, blob } of kept) files.set(name, reader.blobChunks(blob));
  return [...files];
}

const json = (value: unknown): Uint8Array => new TextEncoder().encode(`${JSON.stringify(value, null, 2)}\n`);
const bytesOf = ({
  buffer,
  byteOffset,
  byteLength,
}: Float32Array<ArrayBuffer> | Uint16Array<ArrayBuffer>): Uint8Array => new Uint8Array(buffer, byteOffset, byteLength);

function* mapped<A, B>(items: Iterable<A>, map: (item: A) => B): Generator<B> {
  for (const item of items) yield map(item);
}

// ---- Weights -----------------------------------------------------------------------------------------------------------

interface Weights {
  piecesOf(name: string): Iterable<Float32Array<ArrayBuffer>>;
  whole(name: string): Float32Array<ArrayBuffer>;
}

function createWeights(reader: ChunkReader, { checkpointId, model: { config } }: Request): Weights {
  const sizes = new Map(tensorTable(config).map(({ name, size }) => [name, size]));
  const read = (tensor: string, offset: number, count: number): Float32Array<ArrayBuffer> =>
    reader.readTensorRange({ checkpointId, tensor, part: 'w', offsetBytes: 4 * offset, sizeBytes: 4 * count });
  return {
    *piecesOf(name) {
      const size = sizes.get(name)!;
      for (let at = 0; at < size; at += PIECE_VALUES) yield read(name, at, Math.min(PIECE_VALUES, size - at));
    },
    whole: (name) => read(name, 0, sizes.get(name)!),
  };
}

const encode = (values: Float32Array<ArrayBuffer>, type: GgmlType): Uint8Array => {
  if (type === 'f32') return bytesOf(values);
  if (type === 'f16') return bytesOf(toHalf(values));
  return type === 'q8_0' ? toQ8(values) : toQ4(values);
};

/** Hugging Face's names; its GPT-2 always has a bias of q, k and v, so a model without one gets zeros. */
function* safetensors(
  weights: Weights,
  { model, config: json, type }: { model: ExportedModel; config: unknown; type: 'f32' | 'f16' },
): Generator<Uint8Array> {
  const { config } = model;
  const own = new Set(tensorTable(config).map(({ name }) => name));
  const table = tensorTable({ ...config, qkv_bias: true });
  const header = table.map(({ name, shape }) => ({
    name: name.startsWith('lm_head') ? name : HUGGING_FACE_PREFIX + name,
    dtype: type === 'f16' ? ('F16' as const) : ('F32' as const),
    shape,
  }));
  // `format` is what Hugging Face's loader asks for; the configuration makes the file complete without the other ones.
  yield safetensorsHeader(header, { format: 'pt', config: JSON.stringify(json) });
  for (const { name, size } of table) {
    if (own.has(name)) yield* mapped(weights.piecesOf(name), (values) => encode(values, type));
    else yield new Uint8Array(size * (type === 'f16' ? 2 : 4));
  }
}

function* gguf(
  weights: Weights,
  { head, tensors }: { head: Uint8Array; tensors: ReturnType<typeof ggufTensors> },
): Generator<Uint8Array> {
  yield head;
  for (const { source, shape, type, transposed, ...tensor } of tensors) {
    const bytes = ggufTensorBytes({ shape, type, ...tensor });
    if (source === null) yield new Uint8Array(bytes);
    else if (transposed) yield* inChunks(encode(transpose(weights.whole(source), shape), type));
    else yield* mapped(weights.piecesOf(source), (values) => encode(values, type));
    if (aligned(bytes) > bytes) yield new Uint8Array(aligned(bytes) - bytes);
  }
}

/** (columns, rows) -> (rows, columns), new. */
function transpose(values: Float32Array, [rows, columns]: readonly number[]): Float32Array<ArrayBuffer> {
  const out = new Float32Array(values.length);
  for (let row = 0; row < rows; row++) {
    for (let column = 0; column < columns; column++) out[row * columns + column] = values[column * rows + row];
  }
  return out;
}

function* inChunks(bytes: Uint8Array): Generator<Uint8Array> {
  for (let at = 0; at < bytes.length; at += CHUNK_BYTES_MAX) yield bytes.slice(at, at + CHUNK_BYTES_MAX);
}
