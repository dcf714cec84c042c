// A tensor's bytes cut into what the store takes at once.

import { CHUNK_BYTES_MAX, type StoredPart, type TensorChunk } from './messages.ts';

/** The chunks of a tensor in order, each in a buffer of its own; `bytes` are only read. */
export function* chunksOf<Part extends StoredPart>(
  bytes: Uint8Array,
  { tensor, part }: { readonly tensor: string; readonly part: Part },
): Generator<TensorChunk<Part>> {
  for (let offsetBytes = 0; offsetBytes < bytes.length; offsetBytes += CHUNK_BYTES_MAX) {
    yield { tensor, part, offsetBytes, bytes: bytes.slice(offsetBytes, offsetBytes + CHUNK_BYTES_MAX) };
  }
}
