// Checks what a user may ask of a training run beside its steps: to stop when nothing improves, to keep the best checkpoint, to
// begin at any checkpoint, to prove what was computed, and to say exactly where it went wrong.

import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { CHAIN_START, nextLink } from '../../src/model/chain.ts';
import type { CheckpointRecord } from '../../src/daemon/protocol/models.ts';
import type { JobEvent } from '../../src/daemon/protocol/jobs.ts';
import { EXIT } from '../../src/cli/exit-codes.ts';
import {
  flagsOf,
  generateResult,
  ofType,
  parseEvents,
  startedHome,
  trainResult,
  type DataHome,
} from './daemon-fixture.ts';

const MODEL = { vocab_size: 256, context_length: 16, emb_dim: 32, n_heads: 2, n_layers: 2, drop_rate: 0.1, seed: 5 };
/** Letters without an order. A model first learns which letters there are, and then can only learn the training part by heart. */
const TEXT = Array.from({ length: 400 }, (_, i) => 'abcd'[((i * i * 7 + i * 13) % 61) % 4]).join('');
const OVERFITTING = {
  steps: 400,
  batch_size: 8,
  micro_batch_size: 4,
  val_split: 0.3,
  lr: 5e-3,
  seed: 9,
  eval_every: 5,
  eval_batches: 2,
  checkpoint_every: 7,
  keep_last: 1,
  patience: 3,
  sample_every: 10,
};

const homes: DataHome[] = [];
let shared: DataHome;

async function homeWith(options: { readonly workers: number }): Promise<DataHome> {
  const home = await startedHome(options);
  home.write('text.txt', TEXT);
  return home;
}

const create = (home: DataHome, name: string): Promise<unknown> =>
  home.json(['create', name, ...flagsOf(MODEL), '--tokenizer', 'byte', '--init', 'gpt2']);
const train = (home: DataHome, name: string, flags: Parameters<typeof flagsOf>[0]): string[] => [
  ...['train', name, '--data', `${home.dir}/text.txt`],
  ...flagsOf(flags),
];
const checkpointsOf = async (home: DataHome, name: string): Promise<readonly CheckpointRecord[]> =>
  (await home.json<{ checkpoints: CheckpointRecord[] }>(['checkpoints', name])).checkpoints;

beforeAll(async () => {
  shared = await homeWith({ workers: 2 });
});
afterEach(async () => {
  await Promise.all(homes.splice(0).map((home) => home.close()));
});
afterAll(() => shared.close());

describe('patience', () => {
  let undisturbed: JobEvent[];

  beforeAll(async () => {
    await create(shared, 'patient');
    undisturbed = await shared.events(train(shared, 'patient', OVERFITTING));
  });

  test('ends the run three evaluations after the best one, says so, and keeps the best checkpoint', async () => {
    const result = trainResult(undisturbed);
    const evals = ofType(undisturbed, 'eval').map(({ data }) => data);
    const losses = evals.map(({ valLoss }) => valLoss!);
    const best = evals[losses.indexOf(Math.min(...losses))];
    expect(best.step).toBeGreaterThan(0);
    expect(result).toMatchObject({ reason: 'patience', best: { step: best.step, valLoss: best.valLoss } });
    expect(result.step).toBe(best.step + 15);
    expect(evals.at(-1)?.step).toBe(result.step);
    // The newest and the best checkpoint of this job are kept.
    const kept = await checkpointsOf(shared, 'patient');
    expect(kept.map(({ step }) => step)).toEqual([0, best.step, result.step]);
    const shown = await shared.json<{ digest: string }>(['models', 'show', 'patient']);
    expect(shown.digest).toBe(result.digest);
    const generated = await shared.events(['generate', 'patient@best', '--prompt', 'ab', '--max-tokens', '1']);
    expect(ofType(generated, 'log')[0].data).toMatchObject({ step: best.step, digest: kept[1].digest });
  });

  test('is the same for a run that was killed and went on with another number of workers', async () => {
    const home = await homeWith({ workers: 1 });
    homes.push(home);
    await create(home, 'patient');
    const command = home.run([...train(home, 'patient', OVERFITTING), '--json']);
    const bestStep = trainResult(undisturbed).best!.step;
    for (const [step, workers] of [
      [4, 2],
      [bestStep + 6, 3],
      [bestStep + 12, 1],
    ]) {
      await command.said(`"type":"step","data":{"step":${step},`);
      await home.restart('SIGKILL', { workers });
    }
    const { stdout } = await command.ended;
    const events = parseEvents(stdout);
    expect(trainResult(events)).toEqual(trainResult(undisturbed));
    for (const type of ['eval', 'sample'] as const) {
      expect(ofType(events, type).map(({ data }) => data)).toEqual(ofType(undisturbed, type).map(({ data }) => data));
    }
    expect(ofType(events, 'sample').length).toBeGreaterThan(0);
    expect(await checkpointsOf(home, 'patient')).toHaveLength(3);
  });

  test('without evaluations of a validation part is refused', async () => {
    for (const flags of [{ patience: 3 }, { patience: 3, eval_every: 5, val_split: 0 }]) {
      const { exitCode, stderr } = await shared.cli(train(shared, 'patient', flags));
      expect([exitCode, stderr]).toEqual([
        EXIT.usage,
        expect.stringMatching(/patience counts evaluations .*evalEvery/),
      ]);
    }
  });
});

test('a wide model, whose first micro-batches go forward on two threads where a stage waits for them, has the same bits', async () => {
  const wide = { ...MODEL, emb_dim: 304, n_layers: 5 };
  const flags = { steps: 6, batch_size: 4, micro_batch_size: 1, context_length: 16, checkpoint_every: 3 };
  const runs: JobEvent[][] = [];
  const alone = await homeWith({ workers: 1 });
  homes.push(alone);
  for (const home of [alone, shared]) {
    await home.json(['create', 'wide', ...flagsOf(wide), '--tokenizer', 'byte', '--init', 'gpt2']);
    runs.push(await home.events(train(home, 'wide', flags)));
  }
  const [one, two] = runs;
  expect(trainResult(two)).toEqual(trainResult(one));
  const told = (events: JobEvent[]): unknown => ofType(events, 'checkpoint').map(({ data }) => data);
  expect(told(two)).toEqual(told(one));
});

test('the hash chain of a run is that of its step events, and goes on with the next run', async () => {
  await create(shared, 'chained');
  const SHORT = { steps: 6, batch_size: 4, context_length: 16 };
  const first = await shared.events(train(shared, 'chained', SHORT));
  const second = await shared.events(train(shared, 'chained', { ...SHORT, resume: true }));
  const chain = (from: string, events: readonly JobEvent[]): string =>
    ofType(events, 'step').reduce((link, { data }) => nextLink(link, data), from);
  expect(trainResult(first).chain).toBe(chain(CHAIN_START, first));
  expect(trainResult(second).chain).toBe(chain(trainResult(first).chain!, second));
});

describe('training NAME@STEP', () => {
  const SHORT = { steps: 4, batch_size: 4, checkpoint_every: 2, keep_last: 10, val_split: 0 };

  test('begins at that checkpoint and counts steps on from it', async () => {
    await create(shared, 'forked');
    await shared.events(train(shared, 'forked', SHORT));
    const before = await checkpointsOf(shared, 'forked');
    expect(before.map(({ step }) => step)).toEqual([0, 2, 4]);
    const events = await shared.events(train(shared, 'forked@2', { ...SHORT, steps: 3, checkpoint_every: 0 }));
    expect(ofType(events, 'step').map(({ data }) => data.step)).toEqual([3, 4, 5]);
    expect(trainResult(events)).toMatchObject({ model: 'forked', step: 5 });
    // The run has the windows and the dropout of a new run from step 2, so a second one from that step has the same bits.
    const again = await shared.events(train(shared, 'forked@2', { ...SHORT, steps: 3, checkpoint_every: 0 }));
    expect(trainResult(again).digest).toBe(trainResult(events).digest);
  });

  test('is refused before it begins when there is no such checkpoint', async () => {
    const { exitCode, stderr } = await shared.cli(train(shared, 'forked@77', SHORT));
    expect([exitCode, stderr]).toEqual([EXIT.jobFailed, 'gptd: The model forked has no checkpoint of step 77.\n']);
  });
});

test('a loss that is no number names the step, the windows of its batch and the last good checkpoint', async () => {
  await create(shared, 'diverging');
  const wild = { steps: 50, batch_size: 4, lr: 1000, grad_clip: 0, checkpoint_every: 1, val_split: 0 };
  const { exitCode, stderr } = await shared.cli([...train(shared, 'diverging', wild), '--no-shuffle']);
  expect(exitCode).toBe(EXIT.jobFailed);
  const [, step, starts, good] =
    /gptd: Step (\d+) has loss \S+ and gradient norm \S+\. Its windows begin at tokens ([\d, ]+)\. The last good checkpoint is diverging@(\d+) /.exec(
      stderr,
    )!;
  expect(Number(good)).toBe(Number(step) - 1);
  const first = ((Number(step) - 1) % 6) * 64;
  expect(starts).toBe([0, 16, 32, 48].map((offset) => first + offset).join(', '));
});

describe('schedules that cannot be', () => {
  test.each([
    [
      { schedule: 'wsd', steps: 10, warmup_steps: 6, decay_steps: 5 },
      /warmupSteps 6 and decaySteps 5 are more than the 10 steps/,
    ],
    [{ schedule: 'cosine', steps: 10, decay_steps: 5 }, /only wsd has a decay/],
  ])('%o', async (flags, message) => {
    const { exitCode, stderr } = await shared.cli(train(shared, 'patient', flags));
    expect([exitCode, stderr]).toEqual([EXIT.usage, expect.stringMatching(message)]);
  });
});

describe('samples', () => {
  const SHORT = {
    steps: 12,
    batch_size: 4,
    micro_batch_size: 2,
    val_split: 0,
    seed: 9,
    checkpoint_every: 6,
    keep_last: 5,
  };
  const sampling = ['--sample-every', '6', '--sample-prompt', 'abc', '--sample-tokens', '9'];

  test('are what the checkpoint of that step generates, and training without them has the same bits', async () => {
    await create(shared, 'sampled');
    await create(shared, 'silent');
    const events = await shared.events([...train(shared, 'sampled', SHORT), ...sampling]);
    const silent = await shared.events(train(shared, 'silent', SHORT));
    expect(trainResult(events).digest).toBe(trainResult(silent).digest);
    const samples = ofType(events, 'sample').map(({ data }) => data);
    expect(samples).toMatchObject([
      { step: 6, prompt: 'abc' },
      { step: 12, prompt: 'abc' },
    ]);
    for (const { step, text, ids } of samples) {
      const generate = ['generate', `sampled@${step}`, '--prompt', 'abc', '--max-tokens', '9'];
      expect(generateResult(await shared.events(generate))).toMatchObject({ text, ids });
    }
    const tempered = [...sampling, '--sample-temperature', '0.9'];
    const drawn = ofType(await shared.events([...train(shared, 'silent@0', SHORT), ...tempered]), 'sample');
    await shared.restart('SIGTERM', { workers: 1 });
    const again = ofType(await shared.events([...train(shared, 'silent@0', SHORT), ...tempered]), 'sample');
    expect(again.map(({ data }) => data)).toEqual(drawn.map(({ data }) => data));
  });

  test('end with the context, and begin with the data when no prompt is given', async () => {
    const flags = [...flagsOf({ ...SHORT, sample_every: 12, sample_tokens: 100 })];
    const events = await shared.events(['train', 'silent@0', '--data', `${shared.dir}/text.txt`, ...flags]);
    const [{ data }] = ofType(events, 'sample');
    expect(data.prompt).toBe(TEXT.slice(0, 8));
    expect(data.ids).toHaveLength(MODEL.context_length - 8);
  });

  test.each([
    [['--sample-prompt', 'abc'], EXIT.usage, /samplePrompt is given and sampleEvery is not/],
    [
      ['--sample-every', '5', '--sample-prompt', 'x'.repeat(16)],
      EXIT.jobFailed,
      /samplePrompt has 16 tokens: .* between 1 and 15/,
    ],
  ])('with %j are refused', async (flags, code, message) => {
    const { exitCode, stderr } = await shared.cli([...train(shared, 'silent', SHORT), ...flags]);
    expect([exitCode, stderr]).toEqual([code, expect.stringMatching(message)]);
  });
});

test('cancelling while a large text is tokenized ends the job between two pieces, and the daemon answers meanwhile', async () => {
  const words = Array.from({ length: 2_500_000 }, (_, i) => ((i * 2654435761) % 999_999_937).toString(36));
  shared.write('large.txt', words.join(' '));
  await shared.json([
    'create',
    'reader',
    ...flagsOf({ ...MODEL, vocab_size: 50257, emb_dim: 8 }),
    '--tokenizer',
    'gpt2',
  ]);
  const command = shared.run(['train', 'reader', '--data', `${shared.dir}/large.txt`, '--json']);
  await command.said('"phase":"tokenize"');
  const { jobs } = await shared.json<{ jobs: { jobId: string }[] }>(['jobs']);
  expect(await shared.json(['cancel', jobs[0].jobId])).toEqual({ jobId: jobs[0].jobId, state: 'cancelled' });
  const { exitCode, stdout } = await command.ended;
  expect(exitCode).toBe(EXIT.cancelled);
  const last = ofType(parseEvents(stdout), 'progress').at(-1)!.data;
  expect(last.unit).toBe('bytes');
  expect(last.done).toBeLessThan(last.total);
});
