// The `generate` job: the prompt goes through the stages in chunks of rows, then each token of the answer by itself. A
// token's bits do not depend on how it got there, so a job that was interrupted continues behind its last logged token.

import { GptdError } from '../model/errors.ts';
import type { SampledToken, SamplingOptions } from '../workers/messages.ts';
import { JobHalted, type JobContext } from './job-context.ts';
import type { GenerateResult, GenerateSpec } from './protocol.ts';
import type { ServedModel } from './served-models.ts';
import { holdModel } from './model-reference.ts';
import { PRIORITY } from './worker-thread.ts';

/** Rows of a prompt that go through the stages at once. */
const PREFILL_ROWS_MAX = 64;
const READ_LIMIT = 1000;

type GenerateContext = JobContext<'generate'>;

export async function runGenerate(context: GenerateContext): Promise<GenerateResult> {
  const { services, jobId, emit } = context;
  const { model, checkpoint } = await pinnedModel(context);
  const loading = performance.now();
  const served = await services.served.acquire(model, checkpoint);
  try {
    const loadMs = performance.now() - loading;
    void emit({ type: 'progress', data: { phase: 'load', done: 1, total: 1, unit: 'model' } }, { key: 'load' });
    return await generate(context, served, loadMs);
  } finally {
    const ends = served.stages.map(({ thread }) =>
      thread.call('serveEnd', { lease: served.lease, sequence: jobId }, { priority: PRIORITY.interactive }),
    );
    await Promise.allSettled(ends);
    services.served.release(served);
  }
}

/** The checkpoint that the job began with: a run after an interruption must not continue with newer weights. */
async function pinnedModel({ spec, services, jobId, emit }: GenerateContext): ReturnType<typeof holdModel> {
  const held = await holdModel(services.store, { jobId, reference: spec.model });
  const { step, digest } = held.checkpoint;
  const message = `Generating with ${held.model.name} at step ${step}.`;
  await emit({ type: 'log', data: { message, step, digest } }, { key: 'model' });
  return held;
}

async function generate(context: GenerateContext, served: ServedModel, loadMs: number): Promise<GenerateResult> {
  const { spec, jobId, emit, cancelled, halted, services } = context;
  const { config, lease } = served;
  const { ids: generated, text: shown } = await loggedTokens(context);
  const begun = await served.stages
    .find(({ plan }) => plan.head)!
    .thread.call(
      'serveBegin',
      {
        lease,
        sequence: jobId,
        prompt: spec.promptIds ?? spec.prompt ?? '',
        continued: generated,
        stop: spec.stop,
        stopIds: spec.stopIds,
        sampling: samplingOf(spec),
      },
      { priority: PRIORITY.interactive },
    );
  const promptTokens = begun.ids.length;
  if (promptTokens === 0) throw new GptdError('invalid_spec', 'The prompt is empty: give at least one token.');
  if (promptTokens > config.context_length) {
    throw new GptdError(
      'invalid_spec',
      `The prompt has ${promptTokens} tokens: the model's context holds ${config.context_length}. Shorten the prompt.`,
    );
  }
  const inputs = [...begun.ids, ...generated];
  const ids = [...generated];
  let text = shown;
  const started = performance.now();
  let [firstTokenMs, prefillMs] = [0, 0];
  let position = 0;
  let reason = endReason({
    stopped: begun.stopped,
    ids,
    maxTokens: spec.maxTokens,
    length: inputs.length - 1,
    context: config.context_length,
  });
  while (reason === null) {
    const rows = inputs.slice(position, position + PREFILL_ROWS_MAX);
    const whole = position + rows.length === inputs.length;
    cancelled.throwIfAborted();
    if (halted.aborted) throw new JobHalted();
    const index = ids.length;
    const last = index + 1 === spec.maxTokens || inputs.length === config.context_length;
    const token = await advance(served, { sequence: jobId, position, rows, sampleIndex: whole ? index : null, last });
    position += rows.length;
    if (token === null) continue;
    if (firstTokenMs === 0) firstTokenMs = prefillMs = performance.now() - started;
    ids.push(token.id);
    inputs.push(token.id);
    text += token.text;
    const { stopped, ...data } = token;
    void emit({ type: 'token', data: { index, ...data } }, { key: `token:${index}` });
    reason = endReason({
      stopped,
      ids,
      maxTokens: spec.maxTokens,
      length: inputs.length - 1,
      context: config.context_length,
    });
  }
  await services.events.flush();
  const { createdAt, startedAt } = await services.store.call('getJob', { jobId });
  const seconds = (performance.now() - started - prefillMs) / 1000;
  const later = ids.length - generated.length - 1;
  return {
    text,
    ids,
    reason,
    usage: { promptTokens, completionTokens: ids.length },
    timings: {
      queueMs: (startedAt ?? createdAt) - createdAt,
      ...{ loadMs, prefillMs, firstTokenMs },
      tokensPerSecond: later > 0 ? later / seconds : 0,
    },
  };
}

/** The fields of a spec that the head's stage samples by. */
function samplingOf(spec: GenerateSpec): SamplingOptions {
  const { temperature, topK, topP, minP, repetitionPenalty, presencePenalty, frequencyPenalty } = spec;
  const { logitBias = {}, bannedIds, logprobs, seed } = spec;
  return {
    ...{ temperature, topK, topP, minP, repetitionPenalty, presencePenalty, frequencyPenalty },
    ...{ bannedIds, logprobs, seed },
    logitBias: new Map(Object.entries(logitBias).map(([id, bias]) => [Number(id), bias])),
  };
}

/** `length` positions are computed or about to be; the last token of a full context is still sampled, never fed back. */
function endReason(now: {
  stopped: boolean;
  ids: readonly number[];
  maxTokens: number;
  length: number;
  context: number;
}): GenerateResult['reason'] | null {
  if (now.stopped) return 'stop';
  if (now.ids.length >= now.maxTokens) return 'length';
  return now.length > now.context - 1 && now.ids.length > 0 ? 'context' : null;
}

/** Sends rows through the stages; the last one samples when it is asked for a token. */
async function advance(
  served: ServedModel,
  rows: { sequence: string; position: number; rows: readonly number[]; sampleIndex: number | null; last: boolean },
): Promise<SampledToken | null> {
  const { sequence, position, sampleIndex, last } = rows;
  const embedder = served.stages.find(({ plan }) => plan.embeds)!;
  let input: readonly number[] | Float32Array = rows.rows;
  if (embedder.plan.firstBlock !== 0) {
    // A tied wte lives with the head: its stage looks the rows up for the first one.
    const { x } = await embedder.thread.call(
      'serveEmbed',
      { lease: served.lease, position, ids: rows.rows },
      { priority: PRIORITY.interactive },
    );
    input = x;
  }
  for (const { thread } of served.stages) {
    const { x, token }: { x: Float32Array | null; token: SampledToken | null } = await thread.call(
      'serveStep',
      { lease: served.lease, sequence, position, input, sampleIndex, last },
      { priority: PRIORITY.interactive },
    );
    if (x === null) return token;
    input = x;
  }
  return null;
}

/** The tokens that the job's log has already, after an interruption, and the text that came with them. */
async function loggedTokens({ services, jobId }: GenerateContext): Promise<{ ids: number[]; text: string }> {
  const tokens: { id: number; text: string }[] = [];
  for (let after = 0; ;) {
    const { events } = await services.store.call('readEvents', {
      jobId,
      after,
      limit: READ_LIMIT,
      eventType: 'token',
    });
    tokens.push(...events.map(({ data }) => data as { id: number; text: string }));
    if (events.length < READ_LIMIT) break;
    after = events.at(-1)!.seq;
  }
  return { ids: tokens.map(({ id }) => id), text: tokens.map(({ text }) => text).join('') };
}
