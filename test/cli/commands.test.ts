// Runs the built command, and checks the exit codes and streams that a shell sees, without a daemon and with a scripted peer.

import { once } from 'node:events';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, afterEach, beforeAll, describe, expect, it } from 'vitest';
import { runCli, startCli } from './run-cli.ts';
import {
  PEER_TOKEN,
  startPeer,
  type PeerConnection,
  type PeerRequest,
  type ScriptedPeer,
} from './client/scripted-peer.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'gptd-cli-'));
  await writeFile(join(folder, 'book.txt'), 'Call me Ishmael.');
});
afterAll(() => rm(folder, { recursive: true }));

describe('mistakes in the call are exit 2 and one line', () => {
  it.each([
    [['status', '--nope'], "gptd: unknown option '--nope'"],
    [['strat'], "gptd: unknown command 'strat' (Did you mean start?)"],
    [
      ['params', '--emb-dim', 'wide'],
      "gptd: option '--emb-dim <count>' argument 'wide' is invalid. It must be a number.",
    ],
    [['params', '--n-layers', '1.5'], 'gptd: --n-layers is 1.5: it must be an integer between 1 and 1024.'],
    [['create', 'm', '--seed', '-1'], 'gptd: --seed is -1: it must be at least 0.'],
    [['train', 'm', '--data', '/none.txt'], 'gptd: There is no file /none.txt.'],
    [['train', 'm', '--data', '/none.txt', '--steps', '0'], 'gptd: --steps is 0: it must be at least 1.'],
    [['train', 'm'], "gptd: required option '--data <file...>' not specified"],
    [['generate', 'm'], 'gptd: Give either --prompt TEXT or --prompt-ids 1,2,3.'],
    [
      ['start', '--port', '70000'],
      "gptd: option '--port <port>' argument '70000' is invalid. It must be an integer between 0 and 65535.",
    ],
    [['status', '--url', 'example'], 'gptd: The daemon\'s URL is "example": it must look like http://127.0.0.1:7433.'],
  ])('%j', async (args, line) => {
    expect(await runCli(args)).toEqual({ exitCode: 2, stdout: '', stderr: `${line}\n` });
  });
});

describe('without a daemon', () => {
  it.each([
    ['status'],
    ['stop'],
    ['params'],
    ['jobs'],
    ['models'],
    ['attach', 'j'],
    ['generate', 'm', '--prompt', 'a'],
  ])('%s is exit 69', async (...args) => {
    const { exitCode, stdout, stderr } = await runCli(args, { GPTD_HOME: folder });
    expect({ exitCode, stdout }).toEqual({ exitCode: 69, stdout: '' });
    expect(stderr).toBe(`gptd: No daemon answers for ${folder}: start one with "gptd start".\n`);
  });

  it('help and version are there', async () => {
    const help = await runCli(['--help']);
    expect(help.exitCode).toBe(0);
    expect(help.stdout).toContain('gptd train tiny --data book.txt');
    expect(await runCli(['--version'])).toEqual({ exitCode: 0, stdout: '0.1.0\n', stderr: '' });
  });
});

describe('with a daemon', () => {
  let peer: ScriptedPeer | undefined;
  afterEach(async () => {
    await peer?.close();
    peer = undefined;
  });

  /** Starts a peer with one job "j", whose events it sends as soon as a client subscribes. */
  async function peerWithJob(
    bodies: readonly object[],
    also?: (connection: PeerConnection, request: PeerRequest) => void,
  ) {
    peer = await startPeer((connection, request) => {
      if (request.method === 'job.submit') connection.reply(request, { jobId: 'j', state: 'queued' });
      else if (request.method === 'job.subscribe') {
        connection.reply(request, { lastSeq: bodies.length });
        bodies.forEach((body, index) => connection.event(eventOf(body, index + 1)));
      } else also?.(connection, request);
    });
    return { peer, env: { GPTD_HOME: folder, GPTD_URL: peer.url, GPTD_TOKEN: PEER_TOKEN } };
  }

  const eventOf = (body: object, seq: number) => ({ jobId: 'j', seq, at: 0, ...body });
  const token = (index: number, text: string) => ({ type: 'token', data: { index, id: index, text, logprob: -1 } });
  const generated = {
    type: 'succeeded',
    data: {
      result: {
        text: 'ab',
        ids: [0, 1],
        reason: 'length',
        usage: { promptTokens: 3, completionTokens: 2 },
        timings: { loadMs: 1, prefillMs: 1, firstTokenMs: 12, tokensPerSecond: 40 },
      },
    },
  };

  it('generate writes the text to stdout and the rest to stderr', async () => {
    const { env } = await peerWithJob([
      { type: 'queued', data: { kind: 'generate' } },
      token(0, 'a'),
      token(1, 'b\u00e9'),
      generated,
    ]);
    expect(await runCli(['generate', 'm', '--prompt', 'x'], env)).toEqual({
      exitCode: 0,
      stdout: 'ab\u00e9\n',
      stderr:
        '2 tokens after 3 prompt tokens, 40.0 tokens/s, first token after 12 ms; stopped at the number of tokens asked for\n',
    });
  });

  it('generate --json writes every event unchanged, one on each line', async () => {
    const bodies = [{ type: 'queued', data: { kind: 'generate' } }, token(0, 'a\n'), generated];
    const { env } = await peerWithJob(bodies);
    const { exitCode, stdout } = await runCli(['generate', 'm', '--prompt-ids', '1,2', '--json'], env);
    expect(exitCode).toBe(0);
    const lines = stdout
      .trimEnd()
      .split('\n')
      .map((line) => JSON.parse(line) as unknown);
    expect(lines).toEqual(bodies.map((body, index) => eventOf(body, index + 1)));
  });

  it('train uploads its data, submits their digest and prints a summary', async () => {
    const result = { model: 'm', step: 2, digest: 'sha256:ab', loss: 1.5, valLoss: 2, tokens: 64 };
    const { peer, env } = await peerWithJob([
      { type: 'eval', data: { step: 2, trainLoss: 1.5, valLoss: 2, perplexity: 7.389 } },
      { type: 'succeeded', data: { result } },
    ]);
    const args = [
      'train',
      'm',
      '--data',
      join(folder, 'book.txt'),
      '--steps',
      '2',
      '--no-shuffle',
      '--val-split',
      '0.5',
    ];
    expect(await runCli(args, env)).toEqual({
      exitCode: 0,
      stdout: 'm: step 2, loss 1.5000, validation loss 2.0000, 64 tokens, digest sha256:ab\n',
      stderr: 'eval at step 2: training loss 1.5000, validation loss 2.0000 (perplexity 7.39)\n',
    });
    const [digest] = [...peer.blobs.keys()];
    expect(peer.requests[0]).toMatchObject({
      method: 'job.submit',
      params: {
        kind: 'train',
        spec: { model: 'm', steps: 2, shuffle: false, valSplit: 0.5, data: [{ digest, format: 'text' }] },
      },
    });
  });

  it('create --json prints the result document; a failed job is exit 1 with its reason', async () => {
    const result = { model: 'm', step: 0, digest: 'sha256:ab', parameters: 10 };
    const good = await peerWithJob([{ type: 'succeeded', data: { result } }]);
    expect(await runCli(['create', 'm', '--json'], good.env)).toEqual({
      exitCode: 0,
      stdout: `${JSON.stringify(result)}\n`,
      stderr: '',
    });
    await good.peer.close();
    const error = { code: 'conflict', message: 'There is already a model "m".' };
    const bad = await peerWithJob([{ type: 'failed', data: { error } }]);
    expect(await runCli(['create', 'm', '--json'], bad.env)).toEqual({
      exitCode: 1,
      stdout: '',
      stderr: 'gptd: There is already a model "m".\n',
    });
  });

  it('--detach prints the job id and leaves', async () => {
    const { env } = await peerWithJob([]);
    expect(await runCli(['create', 'm', '--detach'], env)).toEqual({ exitCode: 0, stdout: 'j\n', stderr: '' });
    expect((await runCli(['create', 'm', '--detach', '--json'], env)).stdout).toBe('{"jobId":"j"}\n');
  });

  it('Ctrl-C cancels the job and waits for its end', async () => {
    const { peer, env } = await peerWithJob([token(0, 'a')], (connection, request) => {
      connection.reply(request, { jobId: 'j', state: 'running' });
      connection.event(eventOf({ type: 'cancelled', data: {} }, 2));
    });
    const cli = startCli(['generate', 'm', '--prompt', 'x'], env);
    await cli.said('a');
    cli.child.kill('SIGINT');
    expect(await cli.ended).toMatchObject({ exitCode: 130, stdout: 'a\n' });
    expect(peer.requests.map((request) => request.method)).toEqual(['job.submit', 'job.subscribe', 'job.cancel']);
  });

  it('a second Ctrl-C leaves the job', async () => {
    const { env } = await peerWithJob([token(0, 'a')]);
    const cli = startCli(['generate', 'm', '--prompt', 'x'], env);
    await cli.said('a');
    cli.child.kill('SIGINT');
    await cli.said('Cancelling job j');
    cli.child.kill('SIGINT');
    const { exitCode, stderr } = await cli.ended;
    expect(exitCode).toBe(130);
    expect(stderr).toContain('"gptd attach j" follows it again.');
  });

  it('attach leaves a job on Ctrl-C without cancelling it, and ends at once when there is nothing more', async () => {
    const running = { kind: 'generate', state: 'running', lastSeq: 1 };
    const first = await peerWithJob([token(0, 'a')], (connection, request) => connection.reply(request, running));
    const cli = startCli(['attach', 'j'], first.env);
    await cli.said('a');
    cli.child.kill('SIGINT');
    expect((await cli.ended).exitCode).toBe(130);
    expect(first.peer.requests.map((request) => request.method)).toEqual(['job.get', 'job.subscribe']);
    await first.peer.close();
    const failed = { kind: 'generate', state: 'failed', lastSeq: 1 };
    const second = await peerWithJob([], (connection, request) => connection.reply(request, failed));
    expect(await runCli(['attach', 'j', '--after', '1'], second.env)).toEqual({ exitCode: 1, stdout: '', stderr: '' });
  });

  it('attach follows a job of a kind that only a newer daemon knows, by the events that all jobs have', async () => {
    const { env } = await peerWithJob(
      [
        { type: 'log', data: { message: 'One two three.' } },
        { type: 'waltz', data: {} },
        { type: 'succeeded', data: { result: 1 } },
      ],
      (connection, request) => connection.reply(request, { kind: 'dance', state: 'running', lastSeq: 3 }),
    );
    expect(await runCli(['attach', 'j'], env)).toEqual({ exitCode: 0, stdout: '', stderr: 'One two three.\n' });
  });

  it('generate shows the first sample as it grows, then the others, then the log probabilities', async () => {
    const data = { id: 0, logprob: -0.5, top: [] };
    const { env } = await peerWithJob([
      { type: 'token', data: { ...data, sample: 1, index: 0, text: 'x', piece: 'x' } },
      { type: 'token', data: { ...data, sample: 0, index: 0, text: 'a', piece: 'a' } },
      { type: 'succeeded', data: { result: { ...generated.data.result, samples: [{ text: 'a' }, { text: 'x' }] } } },
    ]);
    const { stdout } = await runCli(['generate', 'm', '--prompt', 'x', '--n', '2', '--logprobs', '0'], env);
    expect(stdout).toBe(
      'a\n\n--- sample 2 of 2 ---\nx\n\n' +
        'SAMPLE  INDEX  TOKEN  LOGPROB  LIKELIEST\n     1      0  "a"    -0.5000\n     2      0  "x"    -0.5000\n',
    );
  });

  it('a reader that leaves ends the command quietly', async () => {
    const { env } = await peerWithJob([token(0, 'a')], (connection, request) => {
      connection.reply(request, { jobId: 'j', state: 'running' });
      connection.event(eventOf(token(1, 'nobody reads this'), 2));
    });
    const cli = startCli(['generate', 'm', '--prompt', 'x'], env);
    await cli.said('a');
    const closed = once(cli.child.stdout!, 'close');
    cli.child.stdout!.destroy();
    await closed;
    cli.child.kill('SIGINT');
    const { exitCode, stderr } = await cli.ended;
    expect({ exitCode, stderr }).toEqual({
      exitCode: 0,
      stderr: 'Cancelling job j; press Ctrl-C again to leave it running.\n',
    });
  });

  it('a refusal by the daemon is exit 2 for a bad request and exit 1 otherwise', async () => {
    peer = await startPeer((connection, request) =>
      connection.refuse(request, {
        code: -32000,
        message: request.method === 'job.submit' ? 'steps is too many.' : 'There is no model "m".',
        data: { code: request.method === 'job.submit' ? 'invalid_spec' : 'not_found' },
      }),
    );
    const env = { GPTD_URL: peer.url, GPTD_TOKEN: PEER_TOKEN };
    expect(await runCli(['create', 'm'], env)).toMatchObject({ exitCode: 2, stderr: 'gptd: steps is too many.\n' });
    expect(await runCli(['models', 'show', 'm', '--json'], env)).toMatchObject({
      exitCode: 1,
      stderr: 'gptd: There is no model "m".\n',
    });
    expect((await runCli(['models'], { GPTD_URL: peer.url, GPTD_TOKEN: 'wrong' })).stderr).toContain(
      'refused the token',
    );
  });
});
