// From words on the command line to the spec of a job: the fields, the checks, and the sentences that name a flag.

import { describe, expect, it } from 'vitest';
import { configOf } from '../../src/cli/config-flags.ts';
import { checkParams, flagOf, integerBetween, parseIds, parseNumber } from '../../src/cli/flags.ts';
import { generateSpecOf } from '../../src/cli/commands/generate.ts';
import { createSpecOf, paramsSpecOf } from '../../src/cli/commands/models.ts';
import { startArguments } from '../../src/cli/start-flags.ts';
import { dataSpecOf } from '../../src/cli/data-jobs.ts';
import { JOB_SPECS } from '../../src/daemon/protocol/kinds.ts';
import { PRESETS } from '../../src/daemon/protocol/models.ts';

const DIGEST = 'ab'.repeat(32);

describe('numbers', () => {
  it.each([
    ['10', 10],
    ['-3', -3],
    ['1e-3', 0.001],
    ['.5', 0.5],
    ['4E-4', 0.0004],
  ])('reads %s', (text, value) => {
    expect(parseNumber(text)).toBe(value);
  });

  it.each(['', ' ', 'abc', '0x10', 'Infinity', 'NaN', '1_000', '1,000', '1e999'])('refuses %j', (text) => {
    expect(() => parseNumber(text)).toThrow('It must be a number.');
  });

  it('names the bounds of integers that are in no spec', () => {
    expect(integerBetween(0, 65535)('7433')).toBe(7433);
    expect(() => integerBetween(0, 65535)('65536')).toThrow('It must be an integer between 0 and 65535.');
    expect(() => integerBetween(0, 65535)('1.5')).toThrow('It must be an integer between 0 and 65535.');
  });

  it('reads token ids', () => {
    expect(parseIds('1,2, 3')).toEqual([1, 2, 3]);
    for (const text of ['', '1,,2', '1,-2', '1.5', 'a']) expect(() => parseIds(text)).toThrow('separated by commas');
  });
});

describe('a configuration', () => {
  it('is the 124M preset without flags', () => {
    expect(configOf({})).toEqual(PRESETS.GPT_CONFIG_124M);
  });

  it('takes single fields over those of the preset', () => {
    expect(configOf({ config: 'gpt2-medium', contextLength: 256, dropRate: 0, tieWeights: false })).toEqual({
      ...PRESETS['gpt2-medium'],
      context_length: 256,
      drop_rate: 0,
      tie_weights: false,
    });
  });

  it('names the flags of an impossible one', () => {
    expect(() => configOf({ embDim: 100, nHeads: 12 })).toThrow(
      '--emb-dim 100 cannot be divided among 12 heads: --emb-dim must be a multiple of --n-heads.',
    );
    expect(() => configOf({ dropRate: 1 })).toThrow('--drop-rate is 1: it must be at least 0 and below 1.');
  });

  it('is the whole spec of params', () => {
    expect(paramsSpecOf({ config: 'gpt2' })).toEqual({ config: PRESETS.gpt2 });
  });
});

describe('specs', () => {
  it('carry the flags of create that were given and nothing of the connection', () => {
    const spec = createSpecOf('tiny', {
      vocabSize: 256,
      seed: 7,
      init: 'gpt2',
      tokenizer: 'byte',
      json: true,
      url: 'http://h:1',
    });
    expect(spec).toEqual({
      model: 'tiny',
      config: { ...PRESETS.GPT_CONFIG_124M, vocab_size: 256 },
      seed: 7,
      init: 'gpt2',
      tokenizer: 'byte',
    });
  });

  it('name the data of train by digest and format, in order', () => {
    const flags = {
      data: ['a.txt', 'b.jsonl', 'c.bin', 'd'],
      shuffle: false,
      valSplit: 0,
      minLr: 1e-5,
      token: 'secret',
    };
    const spec = dataSpecOf('train', { model: 'tiny', flags, digests: Array<string>(4).fill(DIGEST) });
    expect(spec).toEqual({
      model: 'tiny',
      shuffle: false,
      valSplit: 0,
      minLr: 1e-5,
      data: ['text', 'jsonl', 'tokens', 'text'].map((format) => ({ digest: DIGEST, format })),
    });
    expect(JOB_SPECS.train.parse(spec)).toMatchObject({ batchSize: 4, lr: 4e-4, shuffle: false, valSplit: 0 });
  });

  it('read every file as token ids under --tokenizer none', () => {
    const flags = { data: ['a.txt'], shuffle: true, tokenizer: 'none' };
    expect(dataSpecOf('train', { model: 'tiny', flags, digests: [DIGEST] })).toMatchObject({
      data: [{ digest: DIGEST, format: 'tokens' }],
    });
  });

  it('want one prompt', () => {
    expect(generateSpecOf('tiny@best', { prompt: '', maxTokens: 3, stop: ['\n'] })).toEqual({
      model: 'tiny@best',
      prompt: '',
      maxTokens: 3,
      stop: ['\n'],
    });
    expect(() => generateSpecOf('tiny', {})).toThrow('Give either --prompt TEXT or --prompt-ids 1,2,3.');
    expect(() => generateSpecOf('tiny', { prompt: 'a', promptIds: [1] })).toThrow('Give either');
  });

  it.each([
    [{ batchSize: 0 }, '--batch-size is 0: it must be at least 1.'],
    [{ batchSize: 1.5 }, '--batch-size is 1.5: it must be an integer.'],
    [{ valSplit: 1 }, '--val-split is 1: it must be below 1.'],
    [{ warmupSteps: -1 }, '--warmup-steps is -1: it must be at least 0.'],
    [{ eps: 0 }, '--eps is 0: it must be above 0.'],
    [{ beta2: 2 }, '--beta2 is 2: it must be below 1.'],
  ])('refuse %j by its flag', (fields, sentence) => {
    const flags = { data: ['a.txt'], shuffle: true, ...fields };
    expect(() => dataSpecOf('train', { model: 'tiny', flags, digests: [DIGEST] })).toThrow(sentence);
  });

  it('refuse names by their argument', () => {
    expect(() => createSpecOf('a/b', {})).toThrow('NAME is "a/b": a model name is');
    expect(() => checkParams('job.cancel', { jobId: 'a b' })).toThrow('JOB is "a b": a job id is');
    expect(() => checkParams('job.subscribe', { jobId: 'a', after: -1 })).toThrow(
      '--after is -1: it must be at least 0.',
    );
  });

  it('have flags named after their fields', () => {
    expect(['valSplit', 'topK', 'emb_dim', 'lr', 'model'].map(flagOf)).toEqual([
      '--val-split',
      '--top-k',
      '--emb-dim',
      '--lr',
      'NAME',
    ]);
  });
});

describe('start', () => {
  it('passes on everything but the token', () => {
    const args = startArguments(
      {
        host: '127.0.0.1',
        port: 0,
        engine: 'onnx',
        queueLimit: 5,
        keepJobs: 7,
        logLevel: 'warn',
        workers: 2,
        allowOrigin: ['http://a', 'http://b'],
        token: 'secret',
      },
      '/data',
    );
    expect(args).toEqual([
      ...[
        'start',
        '--data-dir',
        '/data',
        '--host',
        '127.0.0.1',
        '--port',
        '0',
        '--engine',
        'onnx',
        '--queue-limit',
        '5',
        '--keep-jobs',
        '7',
        '--log-level',
        'warn',
      ],
      ...['--workers', '2', '--allow-origin', 'http://a', '--allow-origin', 'http://b'],
    ]);
  });
});
