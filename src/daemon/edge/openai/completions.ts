// OpenAI's completions over the job system: each prompt is a generating job like any other, stored and replayable, whose events
// are told in OpenAI's words as they become durable. A client that goes away takes its jobs with it.

import { randomInt } from 'node:crypto';
import type { ServerResponse } from 'node:http';
import { GptdError } from '../../../model/errors.ts';
import { completeTokenizer } from '../../../model/text/stored.ts';
import type { Exchange } from '../exchange.ts';
import { errorBody } from '../http-errors.ts';
import type { Services } from '../../jobs/context.ts';
import { resolveModel } from '../../threads/model-reference.ts';
import { joinPieces, JobChoices } from './choices.ts';
import type { Completion, CompletionChoice, CompletionRequest, CompletionUsage } from './protocol.ts';
import { completionSpecs, promptsOf, readCompletionRequest } from './request.ts';
import type { StoredEvent } from '../../../workers/store/messages.ts';
import { readToken } from '../../threads/stored-events.ts';
import { readFailure, readGenerated, type Generated } from './events.ts';
import type { Handlers } from '../../protocol/methods.ts';
import { Subscriptions } from '../subscriptions.ts';

/** A client of which nothing is heard is asked so often whether it is there. */
const KEEP_ALIVE_MS = 20_000;
const SEED_END = 2 ** 32;

export interface CompletionParts {
  readonly services: Services;
  readonly handlers: Pick<Handlers, 'job.submit' | 'job.cancel'>;
}

/** Answers POST /v1/completions; throws what is to be answered as an error, as long as nothing has been sent. */
export async function complete(parts: CompletionParts, { request, response, stopping }: Exchange): Promise<void> {
  const body = await readCompletionRequest(request);
  const prefixes = body.echo === true ? await promptTexts(parts.services, body) : [];
  // How long a job takes is its own matter; that the client lives is the socket's.
  request.socket.setTimeout(0);
  request.socket.setKeepAlive(true, KEEP_ALIVE_MS);
  const left = new AbortController();
  const onClose = (): void => left.abort(new GptdError('cancelled', 'The client closed the connection.'));
  const onStop = (): void =>
    left.abort(new GptdError('shutting_down', 'The daemon is shutting down: ask again when it is back.'));
  response.once('close', onClose);
  stopping.addEventListener('abort', onStop);
  if (response.destroyed) onClose();

  const jobs = new Map<string, JobChoices>();
  const ended = new AbortController();
  try {
    for (const [i, spec] of completionSpecs(body, randomInt(SEED_END)).entries()) {
      const { jobId } = await parts.handlers['job.submit']({ kind: 'generate', spec, priority: 0 });
      const sampleCount = spec.n ?? 1;
      const options = { firstIndex: i * sampleCount, sampleCount, prefix: prefixes[i] ?? '' };
      jobs.set(jobId, new JobChoices({ ...options, logprobs: typeof body.logprobs === 'number' }));
      left.signal.throwIfAborted();
    }
    const answer = new Answer(response, { body, jobId: [...jobs.keys()][0], engine: parts.services.engine });
    const usage = await follow(parts.services, { jobs, answer, response, left: left.signal, ended: ended.signal });
    answer.end(usage);
  } catch (error) {
    for (const jobId of jobs.keys()) void parts.handlers['job.cancel']({ jobId }).catch(() => undefined);
    if (response.destroyed) return;
    if (!response.headersSent) throw error;
    response.end(`data: ${JSON.stringify(errorBody(error))}\n\n`);
  } finally {
    ended.abort();
    response.off('close', onClose);
    stopping.removeEventListener('abort', onStop);
  }
}

/** The prompts as text; of ids the text that they decode to. */
async function promptTexts({ store, texts }: Services, body: CompletionRequest): Promise<string[]> {
  const { model } = await resolveModel(store, body.model);
  const tokenizer = completeTokenizer(model.tokenizer);
  const textOf = async (ids: readonly number[]): Promise<string> =>
    tokenizer === null ? '' : (await texts.decoding({ model, tokenizer })).decode(ids);
  return await Promise.all(
    promptsOf(body).map(async (prompt) => (typeof prompt === 'string' ? prompt : await textOf(prompt))),
  );
}

/** Tells the events of all jobs until the last one has ended. Rejects with the first job's failure, or when nobody listens. */
async function follow(
  { store, events }: Services,
  {
    jobs,
    answer,
    response,
    left,
    ended,
  }: {
    jobs: ReadonlyMap<string, JobChoices>;
    answer: Answer;
    response: ServerResponse;
    /** Aborted when the client has left or the daemon stops. */
    left: AbortSignal;
    /** Aborted when nothing more is to be told. */
    ended: AbortSignal;
  },
): Promise<CompletionUsage> {
  const results: Generated[] = [];
  await new Promise<void>((resolve, reject) => {
    const hear = (event: StoredEvent): void => {
      const choices = jobs.get(event.jobId)!;
      if (event.type === 'token') {
        answer.add(choices.token(readToken(event)));
      } else if (event.type === 'succeeded') {
        const result = readGenerated(event);
        for (const piece of choices.end(result)) answer.add(piece);
        if (results.push(result) === jobs.size) resolve();
      } else if (event.type === 'failed') {
        reject(readFailure(event));
      } else if (event.type === 'cancelled') {
        reject(new GptdError('cancelled', `The job ${event.jobId} was cancelled.`));
      }
    };
    const sink = { bufferedBytes: () => response.writableLength, send: hear };
    const subscriptions = new Subscriptions({ store, events }, { sink, onError: reject });
    ended.addEventListener('abort', () => subscriptions.close(), { once: true });
    left.addEventListener('abort', () => reject(left.reason as Error), { once: true });
    if (left.aborted) reject(left.reason as Error);
    for (const jobId of jobs.keys()) void subscriptions.subscribe(jobId, 0).catch(reject);
  });
  const sum = (count: (usage: Generated['usage']) => number): number =>
    results.reduce((total, { usage }) => total + count(usage), 0);
  const [prompt, completion] = [sum((usage) => usage.promptTokens), sum((usage) => usage.completionTokens)];
  return { prompt_tokens: prompt, completion_tokens: completion, total_tokens: prompt + completion };
}

/** What the client gets: one document, or a stream of pieces that begins with the first token, so that an early fault has a status. */
class Answer {
  readonly #response: ServerResponse;
  readonly #head: Omit<Completion, 'choices'>;
  readonly #streams: boolean;
  readonly #tellsUsage: boolean;
  /** By index, when they are not streamed. */
  readonly #pieces: CompletionChoice[][] = [];

  constructor(
    response: ServerResponse,
    { body, jobId, engine }: { body: CompletionRequest; jobId: string; engine: { readonly fingerprint: string } },
  ) {
    this.#response = response;
    this.#streams = body.stream === true;
    this.#tellsUsage = body.stream_options?.include_usage === true;
    this.#head = {
      id: `cmpl-${jobId}`,
      object: 'text_completion',
      created: Math.floor(Date.now() / 1000),
      model: body.model,
      system_fingerprint: engine.fingerprint,
    };
    response.setHeader('x-request-id', jobId);
  }

  add(piece: CompletionChoice): void {
    if (!this.#streams) (this.#pieces[piece.index] ??= []).push(piece);
    else if (piece.text !== '' || piece.logprobs !== null || piece.finish_reason !== null) {
      this.#write({ ...this.#head, choices: [piece], ...(this.#tellsUsage ? { usage: null } : {}) });
    }
  }

  end(usage: CompletionUsage): void {
    if (this.#streams) {
      if (this.#tellsUsage) this.#write({ ...this.#head, choices: [], usage });
      this.#response.end('data: [DONE]\n\n');
      return;
    }
    const completion: Completion = { ...this.#head, choices: this.#pieces.map(joinPieces), usage };
    this.#response.writeHead(200, { 'content-type': 'application/json' }).end(`${JSON.stringify(completion)}\n`);
  }

  #write(chunk: Completion): void {
    if (this.#response.destroyed) return;
    if (!this.#response.headersSent) {
      this.#response.writeHead(200, {
        'content-type': 'text/event-stream; charset=utf-8',
        'cache-control': 'no-cache',
      });
    }
    this.#response.write(`data: ${JSON.stringify(chunk)}\n\n`);
  }
}
