// What `verify` recomputes from what is stored: a checkpoint's digest from its chunks, tensor by tensor, and a job's hash chain
// from its steps.

import { nextLink } from '../../model/chain.ts';
import type { GptConfig } from '../../model/config.ts';
import { weightsDigest } from '../../model/digest.ts';
import { tensorBytes, tensorTable } from '../../model/tensors.ts';
import type { ChunkReader } from '../store/reader.ts';
import type { PreparerCalls } from './messages.ts';

const STEPS_AT_ONCE = 4096;

/** Yields null after every tensor but the last, then the digest. Throws `corrupt` for a damaged chunk. */
export function* digestOf(
  reader: ChunkReader,
  { checkpointId, config }: { readonly checkpointId: number; readonly config: GptConfig },
): Generator<string | null> {
  const digest = weightsDigest(config);
  const table = tensorTable(config);
  for (const [i, tensor] of table.entries()) {
    const { name } = tensor;
    const { buffer } = reader.readTensor({ checkpointId, tensor: name, part: 'w', sizeBytes: tensorBytes(tensor) });
    digest.update(name, new Uint8Array(buffer));
    yield i + 1 === table.length ? digest.digest() : null;
  }
}

/** See PreparerCalls.chainSteps. */
export function chainSteps(
  reader: ChunkReader,
  { jobId, start, after, to }: PreparerCalls['chainSteps'][0],
): PreparerCalls['chainSteps'][1] {
  let [chain, done] = [start, after];
  while (done < to) {
    const steps = reader.readSteps({ jobId, after: done, limit: Math.min(STEPS_AT_ONCE, to - done) });
    if (steps.length === 0) return { chain: null };
    for (const step of steps) {
      if (step.step !== done + 1) return { chain: null };
      chain = nextLink(chain, step);
      done = step.step;
    }
  }
  return { chain };
}
