// Checks that every error is told in one line on stderr with the right exit code, and that the daemon lives on.

import { mkdirSync } from 'node:fs';
import path from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { EXIT } from '../../src/cli/exit-codes.ts';
import type { CreateResult } from '../../src/daemon/protocol/models.ts';
import type { CliRun } from '../cli/run-cli.ts';
import { DataHome, flagsOf, generateResult, ofType, parseEvents, startedHome } from './daemon-fixture.ts';

const CONTEXT = 16;
const MODEL = { vocab_size: 256, context_length: CONTEXT, emb_dim: 16, n_heads: 2, n_layers: 2, drop_rate: 0, seed: 3 };
const PROMPT = ['generate', 'm', '--prompt', 'x'];
const ALL_IDS = Array.from({ length: 256 }, (_, id) => id).join(',');
const TEXT = 'All work and no play. '.repeat(40);
/** A second daemon must give up at once. The bound also covers the start of Node. */
const IN_USE_MS_MAX = 1_000;

const homes: DataHome[] = [];
let shared: DataHome;

beforeAll(async () => {
  shared = await startedHome({ workers: 2 });
  await shared.json(['create', 'm', ...flagsOf(MODEL), '--tokenizer', 'byte']);
  shared.write('text.txt', TEXT);
  shared.write('empty.txt', '');
  shared.write('short.txt', 'Too short.');
  shared.write('odd.bin', new Uint8Array(3));
  shared.write('wild.bin', Uint8Array.of(0, 255).slice());
  shared.write('latin1.txt', Uint8Array.of(0x63, 0x61, 0x66, 0xe9));
});

afterEach(async () => {
  await Promise.all(homes.splice(0).map((home) => home.close()));
});

afterAll(() => shared.close());

function newHome(): DataHome {
  const home = new DataHome();
  homes.push(home);
  return home;
}

/** Expects exactly one line on stderr that matches, and nothing on stdout that could be taken for a result. */
function expectOneLine({ exitCode, stdout, stderr }: CliRun, expected: { exitCode: number; line: RegExp }): void {
  expect(stderr).toMatch(/^gptd: [^\n]+\n$/);
  expect(stderr).toMatch(expected.line);
  expect(stdout).toBe('');
  expect(exitCode).toBe(expected.exitCode);
}

/** Returns the last line on stderr, which is the error. Before a job fails, it prints its progress there. */
function lastLine({ stderr }: CliRun): string {
  return stderr.trimEnd().split('\n').at(-1) ?? '';
}

describe('a command that is refused', () => {
  const data = (name: string): string[] => ['--data', `${shared.dir}/${name}`];

  test.each<[string, () => string[], number, RegExp]>([
    ['an unknown model to generate with', () => ['generate', 'nobody', '--prompt', 'x'], EXIT.jobFailed, /nobody/],
    ['an unknown checkpoint', () => ['generate', 'm@7', '--prompt', 'x'], EXIT.jobFailed, /7/],
    ['an unknown model to train', () => ['train', 'nobody', ...data('text.txt')], EXIT.jobFailed, /nobody/],
    ['an unknown model to show', () => ['models', 'show', 'nobody'], EXIT.jobFailed, /nobody/],
    ['an unknown model to remove', () => ['models', 'rm', 'nobody'], EXIT.jobFailed, /nobody/],
    ['an unknown job', () => ['attach', 'nobody'], EXIT.jobFailed, /nobody/],
    ['an unknown flag', () => ['status', '--colour'], EXIT.usage, /unknown option '--colour'/],
    ['an unknown command', () => ['sing'], EXIT.usage, /unknown command 'sing'/],
    ['a file that is not there', () => ['train', 'm', ...data('none.txt')], EXIT.usage, /none\.txt/],
    ['an empty file', () => ['train', 'm', ...data('empty.txt')], EXIT.usage, /empty/],
    [
      'prompt ids beyond the context',
      () => ['generate', 'm', '--prompt-ids', '1,'.repeat(CONTEXT) + '1'],
      EXIT.usage,
      /17 tokens.* 16/,
    ],
    [
      'a prompt text beyond the context',
      () => ['generate', 'm', '--prompt', 'x'.repeat(CONTEXT + 1)],
      EXIT.usage,
      /17 tokens.* 16/,
    ],
    ['a prompt id beyond the vocabulary', () => ['generate', 'm', '--prompt-ids', '256'], EXIT.usage, /256.* 0 to 255/],
    ['an empty prompt', () => ['generate', 'm', '--prompt', ''], EXIT.usage, /empty/],
    ['a stop id beyond the vocabulary', () => [...PROMPT, '--stop-id', '256'], EXIT.usage, /256.* 0 to 255/],
    ['a banned id beyond the vocabulary', () => [...PROMPT, '--ban-id', '5', '999'], EXIT.usage, /999.* 0 to 255/],
    ['a bias beyond the vocabulary', () => [...PROMPT, '--logit-bias', '256=1'], EXIT.usage, /256.* 0 to 255/],
    ['a bias that is none', () => [...PROMPT, '--logit-bias', '5'], EXIT.usage, /like 50256=-100/],
    ['a bias beyond 100', () => [...PROMPT, '--logit-bias', '5=101'], EXIT.usage, /--logit-bias is 101.* most 100/],
    ['a ban of all ids', () => [...PROMPT, '--ban-id', ALL_IDS], EXIT.usage, /all 256 ids/],
    ['two prompts', () => ['generate', 'm', '--prompt', 'x', '--prompt-ids', '1'], EXIT.usage, /either --prompt/],
    ['a name that cannot be a path', () => ['create', '../m'], EXIT.usage, /letters, digits/],
    [
      'steps and epochs',
      () => ['train', 'm', ...data('text.txt'), '--steps', '1', '--epochs', '1'],
      EXIT.usage,
      /--steps/,
    ],
    [
      'a micro-batch that does not divide',
      () => ['train', 'm', ...data('text.txt'), '--micro-batch-size', '3'],
      EXIT.usage,
      /3 does not divide .* 4/,
    ],
    [
      "a context beyond the model's",
      () => ['train', 'm', ...data('text.txt'), '--context-length', '17'],
      EXIT.usage,
      /17.* 16/,
    ],
    ['a wrong token', () => ['status', '--token', 'not-the-token-of-it'], EXIT.jobFailed, /token/],
  ])('by %s', async (_what, args, exitCode, line) => {
    expectOneLine(await shared.cli(args()), { exitCode, line });
  });

  test.each<[string, string[], RegExp]>([
    ['a width that the heads cannot share', ['--emb-dim', '10', '--n-heads', '3'], /10.* 3 heads/],
    ['no blocks', ['--n-layers', '0'], /--n-layers is 0/],
    ['a negative count', ['--vocab-size', '-5'], /--vocab-size is -5/],
    ['a fraction', ['--context-length', '1.5'], /--context-length is 1\.5/],
    ['2^53', ['--emb-dim', '9007199254740992'], /--emb-dim is 9007199254740992/],
    ['a dropout of 1', ['--drop-rate', '1'], /--drop-rate is 1/],
    ['a word for a number', ['--emb-dim', 'wide'], /--emb-dim .*'wide' is invalid/],
  ])('by a configuration with %s', async (_what, flags, line) => {
    for (const command of [['create', 'impossible'], ['params']]) {
      expectOneLine(await shared.cli([...command, ...flags]), { exitCode: EXIT.usage, line });
    }
  });

  test('because the model is too large for the machine', async () => {
    const flags = flagsOf({ vocab_size: 50257, context_length: 1024, emb_dim: 65536, n_heads: 1024, n_layers: 1024 });
    const run = await shared.cli(['create', 'giant', ...flags]);
    expectOneLine(run, { exitCode: EXIT.jobFailed, line: /GB/ });
  });
});

describe('a job that fails', () => {
  test.each([
    ['data too short for one batch', 'short.txt', [], /The data is too short: .* Give more text/],
    ['ids in half a byte pair', 'odd.bin', ['--tokenizer', 'none'], /3 bytes: uint16 ids need an even number/],
    ['ids beyond the vocabulary', 'wild.bin', ['--tokenizer', 'none'], /is 65280: the model's ids go from 0 to 255/],
    ['text that is not UTF-8', 'latin1.txt', [], /not UTF-8/],
    [
      "another tokenizer than the model's",
      'text.txt',
      ['--tokenizer', 'char'],
      /byte tokenizer: its data cannot be read with char/,
    ],
  ])('by %s', async (_what, file, flags, line) => {
    const run = await shared.cli(['train', 'm', '--data', `${shared.dir}/${file}`, ...flags]);
    expect(lastLine(run)).toMatch(/^gptd: /);
    expect(lastLine(run)).toMatch(line);
    expect(run).toMatchObject({ exitCode: EXIT.jobFailed, stdout: '' });
  });

  test('by a loss that is no number names the step and leaves the earlier checkpoint to generate with', async () => {
    const { digest } = await shared.json<CreateResult>(['create', 'wild', ...flagsOf(MODEL), '--tokenizer', 'byte']);
    const generate = ['generate', 'wild', '--prompt', 'All', '--max-tokens', '5'];
    const before = generateResult(await shared.events(generate));
    const training = ['train', 'wild', '--data', `${shared.dir}/text.txt`, '--steps', '30'];
    const run = await shared.cli([...training, '--lr', '1e3', '--eps', '1e-30', '--grad-clip', '0', '--json']);
    const steps = ofType(parseEvents(run.stdout), 'step');
    expect(run.exitCode).toBe(EXIT.jobFailed);
    expect(lastLine(run)).toMatch(new RegExp(`^gptd: Step ${steps.length + 1} has loss .* smaller --lr`));
    expect(ofType(parseEvents(run.stdout), 'failed')).toMatchObject([{ data: { error: { code: 'engine_failed' } } }]);
    expect(await shared.json(['models', 'show', 'wild'])).toMatchObject({ step: 0, digest });
    expect(generateResult(await shared.events(generate)).ids).toEqual(before.ids);
  });

  test('the daemon that answered all this has no job left and still works', async () => {
    expect(await shared.json(['jobs'])).toEqual({ jobs: [] });
    expect(await shared.json(['status'])).toMatchObject({ pid: shared.daemon.pid, queue: { queued: 0, running: 0 } });
    const generated = await shared.events(['generate', 'm', '--prompt-ids', '65', '--max-tokens', '3']);
    expect(generateResult(generated).ids).toHaveLength(3);
    expect((await shared.cli(['create', 'm', ...flagsOf(MODEL)])).stderr).toMatch(
      /^gptd: .*There is a model m already/m,
    );
  });
});

describe('the daemon itself', () => {
  test.each([['status'], ['stop'], ['jobs'], ['models'], ['params']])('is missing: `%s` exits 69', async (command) => {
    expectOneLine(await newHome().cli([command]), { exitCode: EXIT.noDaemon, line: /start one with "gptd start"/ });
  });

  test('is not at the address that was given: the command exits 69', async () => {
    const run = await shared.cli(['status', '--url', 'http://127.0.0.1:9']);
    expectOneLine(run, { exitCode: EXIT.noDaemon, line: /127\.0\.0\.1:9/ });
  });

  test('exits 75 within a second when another runs in its data directory, and starts after a SIGKILL of the other', async () => {
    const home = newHome();
    const first = await home.start();
    const startedAt = performance.now();
    const second = await home.cli(['start', '--port', '0']);
    expect(performance.now() - startedAt).toBeLessThan(IN_USE_MS_MAX);
    expectOneLine(second, { exitCode: EXIT.dataDirInUse, line: /in use by another daemon/ });
    expect(await home.json(['status'])).toMatchObject({ pid: first.pid });

    const third = await home.restart('SIGKILL', {});
    expect(await home.json(['status'])).toMatchObject({ pid: third.pid });
  });

  test('exits 78 beyond loopback without a token', async () => {
    const home = newHome();
    const run = await home.cli(['start', '--port', '0', '--host', '0.0.0.0']);
    expectOneLine(run, { exitCode: EXIT.unsafeConfiguration, line: /without a token/ });
    expect(() => home.read('token')).toThrow('ENOENT');
  });

  test('says that it cannot open its lock when the lock is not a file', async () => {
    const home = newHome();
    mkdirSync(path.join(home.dir, 'gptd.lock'));
    const run = await home.cli(['start', '--port', '0']);
    expectOneLine(run, { exitCode: EXIT.jobFailed, line: /SQLITE_CANTOPEN/ });
  });

  test('says so when its port is taken', async () => {
    const run = await newHome().cli(['start', '--port', new URL(shared.daemon.url).port]);
    expectOneLine(run, { exitCode: EXIT.usage, line: /port is in use/ });
  });

  test('stops when it is told to, and removes its address file', async () => {
    const home = newHome();
    const { process } = await home.start();
    expect(await home.json(['stop'])).toMatchObject({ stopped: true });
    expect((await process.ended).exitCode).toBe(EXIT.ok);
    expect(() => home.read('daemon.json')).toThrow('ENOENT');
  });
});
