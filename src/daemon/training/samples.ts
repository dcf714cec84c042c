// Samples show what a model in training would write. They are generated with the weights as they are between two steps, from the
// same prompt and the same draws each time, so that only the weights make the difference. Training's own bits are not touched.

import { GptdError } from '../../model/errors.ts';
import { completeTokenizer } from '../../model/text/stored.ts';
import type { StoredModel } from '../../workers/store/messages.ts';
import type { Dataset } from './dataset.ts';
import type { JobContext } from '../jobs/context.ts';
import type { Pipeline } from './pipeline.ts';

/** The number of tokens of the data that are the prompt when the spec has none. */
const PROMPT_TOKENS_DEFAULT = 8;

export interface Sampler {
  /** Generates a sample and emits the `sample` event of this step. */
  say(pipeline: Pipeline, step: number): Promise<void>;
}

/** Resolves to null when the spec asks for no samples. Throws `invalid_spec` for a prompt that the model cannot continue. */
export async function openSampler(
  { spec, services, emit, cancelled }: JobContext<'train'>,
  { model, dataset }: { model: StoredModel; dataset: Dataset },
): Promise<Sampler | null> {
  const { sampleEvery, samplePrompt, sampleTokens: maxTokens, sampleTemperature: temperature, seed } = spec;
  if (sampleEvery === 0) return null;
  const { texts } = services;
  const tokenizer = dataset.tokenizer ?? completeTokenizer(model.tokenizer);
  const context = model.config.context_length;
  const textOf = async (ids: readonly number[]): Promise<string> =>
    tokenizer === null ? ids.join(' ') : (await texts.decoding({ model, tokenizer })).decode(ids);
  const prompt = await promptIds();
  if (prompt.length === 0 || prompt.length >= context) {
    throw new GptdError(
      'invalid_spec',
      `samplePrompt has ${prompt.length} tokens: it must have between 1 and ${context - 1}, one less than the model's context.`,
    );
  }
  const promptText = samplePrompt ?? (await textOf(prompt));

  async function promptIds(): Promise<readonly number[]> {
    if (samplePrompt === undefined) {
      const ids = dataset.wideTokens ? new Uint32Array(dataset.tokens) : new Uint16Array(dataset.tokens);
      return [...ids.subarray(0, Math.min(PROMPT_TOKENS_DEFAULT, context - 1))];
    }
    if (tokenizer === null) {
      throw new GptdError(
        'invalid_spec',
        `${model.name} has no tokenizer that could read a samplePrompt: leave it out.`,
      );
    }
    return await texts.encode({ model, tokenizer }, samplePrompt);
  }

  return {
    say: async (pipeline, step) => {
      const ids = await pipeline.decode(prompt, { maxTokens, temperature, seed, signal: cancelled });
      const data = { step, prompt: promptText, text: await textOf(ids), ids };
      void emit({ type: 'sample', data }, { key: `sample:${step}` });
    },
  };
}
