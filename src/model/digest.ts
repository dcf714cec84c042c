// The digest of a model's weights: SHA-256 over the tensors in table order. For each tensor it takes the UTF-8 line
// `<name> <d0>,<d1>\n` (the dimensions are joined by commas) and then the values as little-endian f32. Anyone can recompute the
// digest from an export.

import { createHash } from 'node:crypto';
import type { GptConfig } from './config.ts';
import { assert } from './errors.ts';
import { tensorBytes, tensorTable } from './tensors.ts';

export interface WeightsDigest {
  /**
   * Takes the next bytes of tensor `name`, which are little-endian f32. A tensor may come in pieces, but the tensors must come in
   * table order. A wrong order or length is a bug and throws.
   */
  update(name: string, bytes: Uint8Array): void;
  /** Returns 64 hexadecimal digits. Throws before the last byte of the last tensor has come. It may be called only once. */
  digest(): string;
}

/** Starts a digest of the weights of a model of this configuration. */
export function weightsDigest(config: GptConfig): WeightsDigest {
  const table = tensorTable(config);
  const hash = createHash('sha256');
  let next = 0;
  let missingBytes = 0;
  return {
    update: (name, bytes) => {
      if (missingBytes === 0) {
        assert(next < table.length, `${name} comes after the last tensor`);
        const tensor = table[next++];
        const { name: wanted, shape } = tensor;
        assert(name === wanted, `${name} comes where ${wanted} was due`);
        hash.update(`${name} ${shape.join(',')}\n`);
        missingBytes = tensorBytes(tensor);
      }
      const current = table[next - 1].name;
      assert(name === current, `${name} comes while ${current} lacks ${missingBytes} bytes`);
      assert(bytes.length <= missingBytes, `${name} has ${bytes.length - missingBytes} bytes too many`);
      hash.update(bytes);
      missingBytes -= bytes.length;
    },
    digest: () => {
      assert(
        next === table.length && missingBytes === 0,
        `the digest is complete after ${table.length} tensors, not ${next}`,
      );
      return hash.digest('hex');
    },
  };
}
