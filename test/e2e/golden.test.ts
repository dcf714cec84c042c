// Repeats PyTorch's three reference runs with the whole program: it imports, trains and generates as a user would, on one, two
// and three workers, and on both engines.

import { createHash } from 'node:crypto';
import { mkdirSync, writeFileSync } from 'node:fs';
import path from 'node:path';
import { afterAll, beforeAll, describe, expect, test } from 'vitest';
import type { CreateResult, ModelRecord } from '../../src/daemon/protocol/models.ts';
import type { JobEvent } from '../../src/daemon/protocol/jobs.ts';
import type { GptConfig } from '../../src/model/config.ts';
import { initialTensors } from '../../src/model/init.ts';
import { safetensorsHeader } from '../../src/model/formats/safetensors.ts';
import { tensorTable } from '../../src/model/tensors.ts';
import { flatTokens, golden, GOLDEN_NAMES, relative, type Golden } from '../golden/golden.ts';
import { flagsOf, ofType, generateResult, trainResult, startedHome, type DataHome } from './daemon-fixture.ts';

const LAYOUTS = [
  { engine: 'onnx', workerCounts: [1, 2, 3] },
  { engine: 'tensorflow', workerCounts: [1, 2] },
] as const;

const bytesOf = (data: Float32Array | Uint16Array): Uint8Array =>
  new Uint8Array(data.buffer, data.byteOffset, data.byteLength);

/** Writes the run's first weights as Hugging Face keeps a model. Returns the directory with config.json and model.safetensors. */
function huggingFaceDirectory(home: DataHome, { config, seed }: Golden, { name }: { readonly name: string }): string {
  const directory = path.join(home.dir, `hf-${name}`);
  mkdirSync(directory);
  const fields = {
    model_type: 'gpt2',
    vocab_size: config.vocab_size,
    n_positions: config.context_length,
    n_embd: config.emb_dim,
    n_head: config.n_heads,
    n_layer: config.n_layers,
    tie_word_embeddings: config.tie_weights,
  };
  writeFileSync(path.join(directory, 'config.json'), JSON.stringify(fields));
  const shapes = tensorTable(config).map((tensor) => ({
    name: tensor.name,
    dtype: 'F32' as const,
    shape: tensor.shape,
  }));
  const tensors = [...initialTensors(config, { seed, scheme: 'torch' })].map(({ data }) => bytesOf(data));
  writeFileSync(path.join(directory, 'model.safetensors'), Buffer.concat([safetensorsHeader(shapes, {}), ...tensors]));
  return directory;
}

/** Returns the flags that repeat the reference's training loop. */
function trainFlags({ tokens, optimizer }: Golden): string[] {
  const contextLength = tokens[0][0].length - 1;
  const { lr, beta1, beta2, eps, weight_decay, decay, grad_clip } = optimizer;
  return [
    ...['--tokenizer', 'none', '--no-shuffle', '--val-split', '0', '--micro-batch-size', '1'],
    ...flagsOf({ context_length: contextLength, stride: contextLength + 1, batch_size: tokens[0].length }),
    ...flagsOf({ lr, beta1, beta2, eps, weight_decay, decay, grad_clip }),
  ];
}

/** Returns SHA-256 over the tensors in table order: a line `<name> <dimensions>`, then the values as little-endian f32. */
function digestOf(
  config: GptConfig,
  tensors: Iterable<{ readonly name: string; readonly data: Float32Array }>,
): string {
  const shapes = new Map(tensorTable(config).map(({ name, shape }) => [name, shape]));
  const hash = createHash('sha256');
  for (const { name, data } of tensors) hash.update(`${name} ${shapes.get(name)!.join(',')}\n`).update(bytesOf(data));
  return hash.digest('hex');
}

/** Imports the first weights, trains as the reference did, and checks what the trained model generates. */
async function trainedRun(
  home: DataHome,
  reference: Golden,
  { name }: { readonly name: string },
): Promise<{ readonly events: readonly JobEvent[]; readonly digest: string }> {
  await home.json(['import', name, huggingFaceDirectory(home, reference, { name })]);
  const data = home.write(`${name}.bin`, bytesOf(flatTokens(reference)));
  const events = await home.events(['train', name, '--data', data, ...trainFlags(reference)]);
  const { digest, step } = trainResult(events);
  expect(step).toBe(reference.loss.length);
  expect(await home.json<ModelRecord>(['models', 'show', name])).toMatchObject({ step, digest });

  const { prompt, tokens } = reference.greedy;
  const generated = await home.events(['generate', name, '--prompt-ids', prompt.join(), '--max-tokens', '16']);
  expect(generateResult(generated).ids).toEqual(tokens);
  expect(ofType(generated, 'token').map((event) => event.data.id)).toEqual(tokens);
  return { events, digest };
}

describe.each(LAYOUTS)('on $engine', ({ engine, workerCounts }) => {
  let homes: DataHome[] = [];
  beforeAll(async () => {
    homes = await Promise.all(workerCounts.map((workers) => startedHome({ workers, flags: ['--engine', engine] })));
  });
  afterAll(async () => {
    await Promise.all(homes.map((home) => home.close()));
  });

  describe.each(GOLDEN_NAMES)('PyTorch run %s', (name) => {
    const reference = golden(name);

    test('has the same losses, norms and tokens after it, with the same bits for any number of workers', async () => {
      const runs = await Promise.all(homes.map((home) => trainedRun(home, reference, { name })));
      const measured = runs.map(({ events }) =>
        ofType(events, 'step').map(({ data: { step, loss, gradNorm } }) => ({ step, loss, gradNorm })),
      );
      expect(measured[0]).toHaveLength(reference.loss.length);
      for (const [i, { step, loss, gradNorm }] of measured[0].entries()) {
        expect(step).toBe(i + 1);
        expect(relative(loss, reference.loss[i]), `loss of step ${step}`).toBeLessThan(1e-5);
        expect(relative(gradNorm, reference.gradNorm[i]), `norm of step ${step}`).toBeLessThan(1e-4);
      }
      for (const other of measured.slice(1)) expect(other).toEqual(measured[0]);
      expect(new Set(runs.map(({ digest }) => digest)).size).toBe(1);
    });

    test('begins with weights whose digest anyone can recompute', async () => {
      const { config, seed } = reference;
      const created = await homes[0].json<CreateResult>([
        'create',
        `fresh-${name}`,
        ...flagsOf({ ...config, seed }),
        '--tokenizer',
        'char',
      ]);
      expect(created.digest).toBe(digestOf(config, initialTensors(config, { seed, scheme: 'torch' })));
      const imported = await homes[0].json<CreateResult>([
        'import',
        `again-${name}`,
        huggingFaceDirectory(homes[0], reference, { name: `again-${name}` }),
      ]);
      expect(imported.digest).toBe(created.digest);
    });
  });
});
