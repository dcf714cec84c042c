// Weights from an uploaded safetensors file, tensor by tensor in table order. Everything about names, shapes and types is
// checked before the first tensor is read.

import type { GptConfig } from '../model/config.ts';
import { GptdError } from '../model/errors.ts';
import { configFromHuggingFace } from '../model/hf-config.ts';
import { parseSafetensorsHeader, SAFETENSORS_HEADER_BYTES_MAX, toFloat32 } from '../model/safetensors.ts';
import { tensorTable } from '../model/tensors.ts';
import type { ChunkReader } from './chunk-reader.ts';

export interface ImportSource {
  readonly config: GptConfig;
  readonly tensors: Iterable<{ name: string; data: Float32Array }>;
}

/** `weights` and `config` are blob digests. Throws `corrupt` or `incompatible` with the tensor's name. */
export function openImport(
  reader: ChunkReader,
  { weights, config: configBlob }: { weights: string; config: string | null },
): ImportSource {
  const fileBytes = reader.blobSize(weights);
  const prefix = reader.readBlobRange({
    hash: weights,
    offset: 0,
    length: Math.min(fileBytes, SAFETENSORS_HEADER_BYTES_MAX + 8),
  });
  const header = parseSafetensorsHeader(prefix, { fileBytes });
  const json = configBlob === null ? header.metadata : parseJson(new TextDecoder().decode(reader.readBlob(configBlob)));
  const { config, rename } = configFromHuggingFace(json, header.tensors);
  const byName = new Map(header.tensors.map((tensor) => [tensor.name, tensor]));

  function* tensors(): Generator<{ name: string; data: Float32Array }> {
    for (const { name } of tensorTable(config)) {
      const { begin, end, dtype } = byName.get(rename.get(name)!)!;
      const bytes = reader.readBlobRange({ hash: weights, offset: begin, length: end - begin });
      const data = toFloat32(bytes, dtype);
      if (!data.every((value) => Number.isFinite(value))) {
        throw new GptdError('corrupt', `The tensor ${name} holds NaN or infinity: weights must be finite.`);
      }
      yield { name, data };
    }
  }
  return { config, tensors: tensors() };
}

function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch (error) {
    throw new GptdError('corrupt', 'config.json is not JSON.', { cause: error });
  }
}
