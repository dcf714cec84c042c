// How a `generate` job is followed and printed: the first sample grows on stdout token by token. The other samples and the log
// probabilities follow when all samples have ended.

import type { GenerateResult, TokenData } from '../../daemon/protocol/generation.ts';
import { formatCount, formatTable } from '../render/records.ts';
import type { JobKindRecord } from './kind.ts';

export const generateKind: JobKindRecord<GenerateResult> = {
  json: 'events',
  follow(output) {
    /** The tokens whose log probabilities are shown at the end. */
    const tokens: TokenData[] = [];
    return {
      event(event) {
        if (event.type !== 'token' || output.report !== 'text') return;
        output.stopProgress();
        if (event.data.piece !== undefined) tokens.push(event.data);
        // All samples grow at the same time, so only the first one is shown as it grows.
        if ((event.data.sample ?? 0) === 0) output.append(event.data.text);
      },
      result(result) {
        for (const text of formatOtherSamples(result)) output.print(text);
        output.note(formatGenerated(result));
        if (tokens.length > 0) output.print(`\n${formatLogprobs(tokens)}`);
      },
    };
  },
};

const STOP_REASONS: Readonly<Record<GenerateResult['reason'], string>> = {
  stop: 'stopped at a stop text',
  length: 'stopped at the number of tokens asked for',
  context: 'stopped at the end of the context',
};

function formatGenerated({ usage, timings, reason }: GenerateResult): string {
  return (
    `${formatCount(usage.completionTokens)} tokens after ${formatCount(usage.promptTokens)} prompt tokens, ` +
    `${timings.tokensPerSecond.toFixed(1)} tokens/s, first token after ${formatCount(timings.firstTokenMs)} ms; ${STOP_REASONS[reason]}`
  );
}

/** Returns all samples but the first, each under a heading. */
const formatOtherSamples = ({ samples = [] }: GenerateResult): string[] =>
  samples.slice(1).map(({ text }, i) => `\n--- sample ${i + 2} of ${samples.length} ---\n${text}`);

/** Returns a table with a row for every token: the token, its log probability, and the likeliest tokens in its place. */
function formatLogprobs(tokens: readonly TokenData[]): string {
  const rows = [...tokens]
    .sort((a, b) => (a.sample ?? 0) - (b.sample ?? 0) || a.index - b.index)
    .map(({ sample, index, piece = '', logprob, top = [] }) => [
      ...(sample === undefined ? [] : [String(sample + 1)]),
      String(index),
      JSON.stringify(piece),
      logprob.toFixed(4),
      top.map((other) => `${JSON.stringify(other.text)} ${other.logprob.toFixed(4)}`).join('  '),
    ]);
  const header = ['INDEX', 'TOKEN', 'LOGPROB', 'LIKELIEST'];
  return formatTable(tokens.some(({ sample }) => sample !== undefined) ? ['SAMPLE', ...header] : header, rows);
}
