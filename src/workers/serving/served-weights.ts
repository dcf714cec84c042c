// The weights of a served model as its programs ask for them: float32 tensors from its checkpoint, and quantized matrices that
// were made of the checkpoint earlier. A matrix that is absent or damaged is made again and handed out, for the store to keep.

import type { GptConfig } from '../../model/config.ts';
import { quantize, quantizedBytes, quantizedMatrix, type Quantization } from '../../model/programs/quantize.ts';
import type { Weights } from '../../model/programs/serving.ts';
import { tensorTable } from '../../model/tensors.ts';
import type { ChunkReader } from '../store/reader.ts';
import { chunksOf, type TensorChunk } from '../store/messages.ts';

export interface ServedWeights extends Weights {
  /**
   * Returns the matrices that had to be made, in chunks with buffers of their own. Call it once, when all have been asked for.
   */
  made(): TensorChunk<Quantization>[];
}

export function servedWeights(
  reader: ChunkReader,
  { checkpointId, config }: { readonly checkpointId: number; readonly config: GptConfig },
): ServedWeights {
  const sizes = new Map(tensorTable(config).map(({ name, size }) => [name, size]));
  const made: { tensor: string; part: Quantization; bytes: Uint8Array }[] = [];
  const get = (tensor: string): Float32Array =>
    reader.readTensor({ checkpointId, tensor, part: 'w', sizeBytes: 4 * sizes.get(tensor)! });
  return {
    get,
    quantized: (tensor, shape) => {
      const { quantization: part } = shape;
      const kept = reader.readMade({ checkpointId, tensor, part, sizeBytes: quantizedBytes(shape) });
      if (kept !== null) return quantizedMatrix(kept, shape);
      const matrix = quantize(get(tensor), shape);
      made.push({ tensor, part, bytes: matrix.bytes });
      return matrix;
    },
    made: () => made.splice(0).flatMap(({ bytes, ...name }) => [...chunksOf(bytes, name)]),
  };
}
