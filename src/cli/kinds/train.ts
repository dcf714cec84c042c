// How a `train` job is followed and printed: a progress line of the steps, and lines about evaluations, samples and checkpoints.

import type { JobEvent } from '../../daemon/protocol/jobs.ts';
import type { TrainResult } from '../../daemon/protocol/training.ts';
import { formatCount, formatDuration, formatLoss, shortDigest, withBar } from '../render/records.ts';
import type { JobKindRecord } from './kind.ts';

type EventData<T extends JobEvent['type']> = Extract<JobEvent, { type: T }>['data'];

export const trainKind: JobKindRecord<TrainResult> = {
  json: 'events',
  follow(output) {
    let valLoss: number | null = null;
    return {
      event(event) {
        switch (event.type) {
          case 'step': {
            const lastValLoss = valLoss;
            output.update((drawing) => formatTrainLine(event.data, { ...drawing, valLoss: lastValLoss }));
            return;
          }
          case 'eval':
            valLoss = event.data.valLoss;
            output.tell(formatEval(event.data));
            return;
          case 'sample':
            output.tell(formatSample(event.data));
            return;
          case 'checkpoint':
            output.tell(formatCheckpoint(event.data));
            return;
          default:
        }
      },
      result: (result) => output.print(formatTrained(result)),
    };
  },
};

export interface TrainLineOptions {
  readonly valLoss: number | null;
  readonly columns: number;
  readonly live: boolean;
}

export function formatTrainLine(step: EventData<'step'>, options: TrainLineOptions): string {
  const text = [
    `step ${formatCount(step.step)}/${formatCount(step.steps)}`,
    `loss ${formatLoss(step.loss)}`,
    ...(options.valLoss === null ? [] : [`val ${formatLoss(options.valLoss)}`]),
    `norm ${step.gradNorm.toPrecision(3)}`,
    `lr ${formatRate(step.lr)}`,
    `${formatCount(step.tokensPerSecond)} tokens/s`,
    `${formatDuration(step.etaMs)} left`,
  ].join('  ');
  return options.live ? withBar(text, { fraction: step.step / step.steps, columns: options.columns }) : text;
}

const formatRate = (lr: number): string => (lr === 0 ? '0' : lr.toExponential(2));

export function formatEval(data: EventData<'eval'>): string {
  const validation =
    data.valLoss === null
      ? ''
      : `, validation loss ${formatLoss(data.valLoss)}${data.perplexity === null ? '' : ` (perplexity ${data.perplexity.toFixed(2)})`}`;
  return `eval at step ${formatCount(data.step)}: training loss ${formatLoss(data.trainLoss)}${validation}`;
}

const formatCheckpoint = (data: EventData<'checkpoint'>): string =>
  `checkpoint at step ${formatCount(data.step)}: digest ${shortDigest(data.digest)}`;

/** Returns one line, whatever the text holds. */
const formatSample = ({ step, prompt, text }: EventData<'sample'>): string =>
  `sample at step ${formatCount(step)}: ${JSON.stringify(prompt + text)}`;

export function formatTrained(result: TrainResult): string {
  const valLoss = result.valLoss === null ? '' : `, validation loss ${formatLoss(result.valLoss)}`;
  const line =
    `${result.model}: step ${formatCount(result.step)}, loss ${formatLoss(result.loss)}${valLoss}, ` +
    `${formatCount(result.tokens)} tokens, digest ${result.digest}`;
  if (result.reason !== 'patience' || result.best === null) return line;
  return `${line}\nstopped early: the validation loss was lowest at step ${formatCount(result.best.step)} (${formatLoss(result.best.valLoss)}), which is ${result.model}@best`;
}
