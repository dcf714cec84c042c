// Who is served when: a real stage on the calling thread, whose steps are noted. Running streams never wait for more than one chunk
// of other people's prompts, and prompts go in at full chunks, in the order in which they came.

import { afterAll, beforeAll, expect, test } from 'vitest';
import { Batcher, PREFILL_ROWS, type Generation } from '../../src/daemon/batcher.ts';
import type { StageCaller } from '../../src/daemon/pipeline.ts';
import { planStages } from '../../src/daemon/plan.ts';
import { generateSpec } from '../../src/daemon/protocol.ts';
import type { GptConfig } from '../../src/model/config.ts';
import { initialTensors } from '../../src/model/init.ts';
import { loadEngine } from '../../src/workers/load-engine.ts';
import type { ServePart, StageCalls } from '../../src/workers/messages.ts';
import { ServeStage } from '../../src/workers/serve-stage.ts';

const CONFIG: GptConfig = {
  ...{ vocab_size: 97, context_length: 512, emb_dim: 32, n_heads: 2, n_layers: 1 },
  ...{ drop_rate: 0, qkv_bias: true, tie_weights: true },
};
const [PLAN] = planStages(CONFIG, 1);

let stage: ServeStage;
const steps: (readonly ServePart[])[] = [];

beforeAll(async () => {
  const tensors = new Map(
    [...initialTensors(CONFIG, { seed: 1, scheme: 'gpt2' })].map(({ name, data }) => [name, data]),
  );
  const setup = { config: CONFIG, stage: PLAN, tokenizer: null, quantization: null };
  stage = await ServeStage.load(await loadEngine('onnx'), setup, tensors);
});
afterAll(() => stage.close());

/** The stage without a thread around it. */
const caller: StageCaller = {
  call: async (type, input) => {
    const request = { type, ...input } as { [K in keyof StageCalls]: { type: K } & StageCalls[K][0] }[keyof StageCalls];
    switch (request.type) {
      case 'serveBegin':
        return stage.begin(request);
      case 'serveStep':
        steps.push(request.parts);
        return await stage.step(request);
      case 'serveEnd':
        stage.end(request);
        return {};
      default:
        throw new Error(`a batch does not ask for ${type}`);
    }
  },
};

/** `onToken` hears of every token. Prompts of different names share no beginning. */
function generate(
  batcher: Batcher,
  {
    name,
    promptLength,
    maxTokens,
    onToken,
  }: { name: string; promptLength: number; maxTokens: number; onToken?: () => void },
): Promise<Generation> {
  const salt = name.charCodeAt(0);
  const promptIds = Array.from({ length: promptLength }, (_, i) => (salt + i * (salt + 1)) % CONFIG.vocab_size);
  const never = new AbortController().signal;
  return batcher.generate({
    spec: generateSpec.parse({ model: 'm', promptIds, maxTokens, temperature: 1 }),
    ...{ sequence: name, sample: 0, continued: [], cancelled: never, halted: never },
    onToken: () => onToken?.(),
    onWait: () => undefined,
  });
}

test('streams are in every step, beside at most one chunk of prompts, which go in in order', async () => {
  const lease = 'batch';
  const limits = { sequencesMax: 16, cachedTokensMax: 1e6 };
  const batcher = new Batcher({ lease, config: CONFIG, stages: [{ thread: caller, plan: PLAN }] }, limits);
  const prompts = [
    { name: 'k', promptLength: 300 },
    { name: 'l', promptLength: 5 },
    { name: 'm', promptLength: 200 },
  ];
  const later: Promise<Generation>[] = [];
  let tokenCount = 0;
  const onToken = (): void => {
    tokenCount += 1;
    // While three streams run, long prompts come.
    if (tokenCount === 15) for (const prompt of prompts) later.push(generate(batcher, { ...prompt, maxTokens: 20 }));
  };
  const streams = ['a', 'b', 'c'].map((name) => generate(batcher, { name, promptLength: 9, maxTokens: 60, onToken }));
  await Promise.all(streams);
  await Promise.all(later);

  // From its first token to its last, a sequence is in every step.
  for (const name of ['a', 'b', 'c', ...prompts.map((prompt) => prompt.name)]) {
    const all = steps.map((parts) => parts.find(({ sequence }) => sequence === name));
    const [first, last] = [all.findIndex((part) => part?.sample), all.findLastIndex((part) => part !== undefined)];
    expect(last - first).toBeGreaterThan(10);
    expect(all.slice(first, last + 1)).not.toContain(undefined);
  }
  const chunks = steps.map((parts) =>
    parts.filter(
      ({ sequence, position }) => position < (prompts.find(({ name }) => name === sequence)?.promptLength ?? 0),
    ),
  );
  // Full chunks from the step after they came on, in order of arrival: so many steps until the last prompt's first token.
  const rows = chunks.map((parts) => parts.reduce((sum, { rowCount }) => sum + rowCount, 0)).filter((sum) => sum > 0);
  expect(PREFILL_ROWS.shared).toBe(64);
  expect(rows).toEqual([64, 64, 64, 64, 64, 64, 64, 505 - 7 * 64]);
  const order = chunks.flat().map(({ sequence }) => sequence);
  expect(order).toEqual(order.toSorted());
});
