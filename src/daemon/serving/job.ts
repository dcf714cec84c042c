// This is the `generate` job. Each of its samples is a sequence in the batch of its model (batcher.ts). A token's bits do not
// depend on which steps computed its context, so a job that was interrupted continues behind its last logged token.

import { GptdError } from '../../model/errors.ts';
import { completeTokenizer } from '../../model/text/stored.ts';
import type { TokenDecoding } from '../../model/text/tokenizer.ts';
import type { StoredModel } from '../../workers/store/messages.ts';
import type { Generation } from './sequence.ts';
import { SequenceText } from './sequence-text.ts';
import type { JobContext } from '../jobs/context.ts';
import type { GenerateResult } from '../protocol/generation.ts';
import type { ServedModel, ServedModels } from './served-models.ts';
import { holdModel } from '../threads/model-reference.ts';
import { readToken, unreadable } from '../threads/stored-events.ts';

const READ_LIMIT = 1000;

type GenerateContext = JobContext<'generate'>;

interface Logged {
  readonly ids: number[];
  text: string;
}

/** A prompt's ids, and the decoding that turns ids into text. The decoding is null for a model that knows token ids only. */
interface Prompt {
  readonly ids: readonly number[];
  readonly decoding: TokenDecoding | null;
}

interface SampleResult extends Logged {
  readonly generation: Generation;
}

export async function runGenerate(context: GenerateContext, models: ServedModels): Promise<GenerateResult> {
  const { services, spec, emit, jobId } = context;
  const [pinned, logged] = await Promise.all([pinnedModel(context), loggedTokens(context)]);
  const reading = readPrompt(context, pinned.model);
  // The model may fail to load before this is awaited.
  reading.catch(() => undefined);
  const loading = performance.now();
  const served = await models.acquire({ ...pinned, quantization: spec.quantize ?? null });
  try {
    const loadMs = performance.now() - loading;
    void emit({ type: 'progress', data: { phase: 'load', done: 1, total: 1, unit: 'model' } }, { key: 'load' });
    const samples = await generateSamples(context, { served, prompt: await reading, logged });
    await services.events.flush();
    const { createdAt, startedAt } = await services.store.call('getJob', { jobId });
    return resultOf(samples, { loadMs, waitedMs: (startedAt ?? createdAt) - createdAt });
  } finally {
    models.release(served);
  }
}

/** The first sample goes ahead until its prompt is in the cache, where the others find it. */
async function generateSamples(
  context: GenerateContext,
  { served, prompt, logged }: { served: ServedModel; prompt: Prompt; logged: readonly Logged[] },
): Promise<SampleResult[]> {
  let begun = (): void => undefined;
  const ahead = new Promise<void>((resolve) => (begun = resolve));
  const first = generateSample(context, { served, prompt, sample: 0, logged: logged[0], onBegun: begun });
  // The first sample may end, or fail, without a token.
  first.then(begun, begun);
  const others = logged.slice(1).map(async (before, i) => {
    await ahead;
    return await generateSample(context, { served, prompt, sample: i + 1, logged: before });
  });
  const settled = await Promise.allSettled([first, ...others]);
  const failed = settled.find((result) => result.status === 'rejected');
  if (failed !== undefined) throw failed.reason;
  return settled.map((result) => (result as PromiseFulfilledResult<SampleResult>).value);
}

async function generateSample(
  { jobId, spec, emit, cancelled, halted }: GenerateContext,
  {
    served,
    prompt,
    sample,
    logged,
    onBegun,
  }: { served: ServedModel; prompt: Prompt; sample: number; logged: Logged; onBegun?: (() => void) | undefined },
): Promise<SampleResult> {
  const several = spec.n > 1;
  const shown = new SequenceText(prompt.decoding, { spec, continued: logged.ids });
  let { text } = logged;
  const generation = await served.batcher.generate({
    sequence: several ? `${jobId}:${sample}` : jobId,
    spec,
    prompt: prompt.ids,
    sample,
    continued: logged.ids,
    isStopped: shown.isStopped,
    cancelled,
    halted,
    onToken: (token, { index, ...end }) => {
      const { id, logprob } = token;
      const next = shown.next(id, end);
      text += next.text;
      const data = { ...(several && { sample }), index, id, text: next.text, logprob, ...shown.listed(token) };
      const key = several ? `token:${sample}:${index}` : `token:${index}`;
      void emit({ type: 'token', data }, { key, mayWait: index > logged.ids.length });
      onBegun?.();
      return next.stopped;
    },
    onWait: (place) => {
      const data = { phase: 'queue', done: 0, total: place, unit: 'places' };
      void emit({ type: 'progress', data }, { key: `queue:${sample}:${place}` });
    },
  });
  return { ids: [...generation.ids], text, generation };
}

function resultOf(
  samples: readonly SampleResult[],
  { loadMs, waitedMs }: { loadMs: number; waitedMs: number },
): GenerateResult {
  const all = samples.map(({ ids, text, generation: { reason } }) => ({ text, ids, reason }));
  const { promptTokens, reusedTokens, queueMs, prefillMs, firstTokenMs, tokensPerSecond } = samples[0].generation;
  const sum = (of: (generation: Generation) => number): number =>
    samples.reduce((total, { generation }) => total + of(generation), 0);
  return {
    ...all[0],
    ...(all.length > 1 && { samples: all }),
    usage: { promptTokens, completionTokens: samples.reduce((total, { ids }) => total + ids.length, 0), reusedTokens },
    timings: { queueMs: waitedMs + queueMs, loadMs, prefillMs, firstTokenMs, tokensPerSecond },
    speculation: { drafted: sum(({ drafted }) => drafted), accepted: sum(({ accepted }) => accepted) },
  };
}

/** Encodes the prompt while the model is loaded. Throws `invalid_spec` for a text that the model has no tokens for. */
async function readPrompt({ spec, services: { texts } }: GenerateContext, model: StoredModel): Promise<Prompt> {
  const tokenizer = completeTokenizer(model.tokenizer);
  if (tokenizer !== null) {
    const encoding = spec.promptIds ?? texts.encode({ model, tokenizer }, spec.prompt ?? '');
    const [ids, decoding] = await Promise.all([encoding, texts.decoding({ model, tokenizer })]);
    return { ids, decoding };
  }
  if (spec.promptIds !== undefined) return { ids: spec.promptIds, decoding: null };
  throw new GptdError('invalid_spec', 'This model has no tokenizer: give the prompt as token ids (--prompt-ids).');
}

/**
 * Resolves to the checkpoint that the job began with, because a run after an interruption must not continue with newer weights.
 */
async function pinnedModel({ spec, services, jobId, emit }: GenerateContext): ReturnType<typeof holdModel> {
  const held = await holdModel(services.store, { jobId, reference: spec.model });
  const { step, digest } = held.checkpoint;
  const message = `Generating with ${held.model.name} at step ${step}.`;
  void emit({ type: 'log', data: { message, step, digest } }, { key: 'model' });
  return held;
}

/**
 * Resolves to the tokens that the job's log has after an interruption and the text that came with them, in one entry for each
 * sample.
 */
async function loggedTokens({ spec, services, jobId, isRepeated }: GenerateContext): Promise<Logged[]> {
  const logged = Array.from({ length: spec.n }, (): Logged => ({ ids: [], text: '' }));
  if (!isRepeated) return logged;
  for (let after = 0; ;) {
    const { events } = await services.store.call('readEvents', {
      jobId,
      after,
      limit: READ_LIMIT,
      eventType: 'token',
    });
    for (const event of events) {
      const { id, text, sample = 0 } = readToken(event);
      const before = logged.at(sample);
      if (before === undefined) throw unreadable(event);
      before.ids.push(id);
      before.text += text;
    }
    if (events.length < READ_LIMIT) return logged;
    after = events.at(-1)!.seq;
  }
}
