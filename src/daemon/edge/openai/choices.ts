// One job's events as OpenAI's choices: a piece of a choice for every token, and a last piece that says why it ended. Strung
// together, the pieces are the choice that a client gets who does not stream.

import type { CompletionChoice, CompletionLogprobs } from './protocol.ts';
import type { GeneratedSample, GenerateResult, TokenData } from '../../protocol/generation.ts';

export interface ChoiceOptions {
  /** Index of the job's first sample among all choices of the request. */
  readonly firstIndex: number;
  readonly sampleCount: number;
  /** What each choice begins with: the prompt's text for an echo. */
  readonly prefix: string;
  readonly logprobs: boolean;
}

export class JobChoices {
  readonly #options: ChoiceOptions;
  /** Characters told so far, by sample; undefined before its first piece. */
  readonly #lengths: (number | undefined)[] = [];

  constructor(options: ChoiceOptions) {
    this.#options = options;
  }

  /** The piece that a token adds. */
  token(data: TokenData): CompletionChoice {
    const { sample = 0, text } = data;
    const offset = this.#lengths[sample] ?? this.#options.prefix.length;
    const logprobs = this.#options.logprobs ? logprobsOf(data, offset) : null;
    return { ...this.#piece(sample, text), logprobs };
  }

  /** The last piece of every sample. */
  end(result: Pick<GenerateResult, keyof GeneratedSample | 'samples'>): CompletionChoice[] {
    const samples: readonly GeneratedSample[] = result.samples ?? [result];
    return samples.map(({ reason }, sample) => ({
      ...this.#piece(sample, ''),
      finish_reason: reason === 'stop' ? 'stop' : 'length',
    }));
  }

  #piece(sample: number, text: string): CompletionChoice {
    const { firstIndex, prefix } = this.#options;
    const told = this.#lengths[sample];
    this.#lengths[sample] = (told ?? prefix.length) + text.length;
    return {
      text: told === undefined ? prefix + text : text,
      index: firstIndex + sample,
      logprobs: null,
      finish_reason: null,
    };
  }
}

/** Pieces of one choice, in order, as one. */
export function joinPieces(pieces: readonly CompletionChoice[]): CompletionChoice {
  const last = pieces[pieces.length - 1];
  const lists = pieces.flatMap(({ logprobs }) => (logprobs === null ? [] : [logprobs]));
  const logprobs: CompletionLogprobs = {
    tokens: lists.flatMap(({ tokens }) => tokens),
    token_logprobs: lists.flatMap(({ token_logprobs: values }) => values),
    top_logprobs: lists.flatMap(({ top_logprobs: tops }) => tops),
    text_offset: lists.flatMap(({ text_offset: offsets }) => offsets),
  };
  return { ...last, text: pieces.map(({ text }) => text).join(''), logprobs: lists.length === 0 ? null : logprobs };
}

function logprobsOf({ id, piece = '', logprob, top = [] }: TokenData, offset: number): CompletionLogprobs {
  const token = nameOf(id, piece);
  const likeliest = Object.fromEntries(top.map((other) => [nameOf(other.id, other.text), other.logprob]));
  return {
    tokens: [token],
    token_logprobs: [logprob],
    top_logprobs: [{ ...likeliest, [token]: logprob }],
    text_offset: [offset],
  };
}

/** Two tokens never have one name: what is no text by itself is named by its id. */
const nameOf = (id: number, piece: string): string =>
  piece === '' || piece.includes('\uFFFD') ? `token_id:${id}` : piece;
