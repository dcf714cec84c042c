// The token is needed everywhere, is taken from a header or a subprotocol only, and is written nowhere but in its own file. A daemon
// with the most talkative log is kept busy with requests that carry the token rightly and wrongly. Then everything that it wrote is
// searched.

import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { ofType, type Daemon, type DataHome, type RawClient } from '../e2e/daemon-fixture.ts';
import { inParallel } from './probe.ts';
import { exchange, portOf, upgradeRequest } from './raw-socket.ts';
import type { Random } from './random.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';
import { makeModel, submit, wholeLog } from './training.ts';

const CLOSE_MS_MAX = 10_000;
const WIDTH = 8;

interface Request {
  readonly method: string;
  readonly target: string;
  readonly headers: Readonly<Record<string, string>>;
  /** The status that the reply has to have. */
  readonly status: number;
}

const bearer = (token: string): Record<string, string> => ({ Authorization: `Bearer ${token}` });

/** Makes a request with the token. It counts only in the header where the daemon looks for it. */
function requestWithToken({ token, url }: Daemon, random: Random): Request {
  const target = random.pick([
    '/v1/models',
    '/metrics',
    '/readyz',
    '/v1/blobs/sha256:0',
    '/nowhere',
    '/v1/completions',
  ]);
  const get = (headers: Request['headers'], status: number, query = ''): Request => {
    return { method: 'GET', target: `${target}${query}`, headers, status };
  };
  const served = target === '/v1/blobs/sha256:0' || target === '/nowhere' || target === '/v1/completions' ? 404 : 200;
  return random.pick([
    get(bearer(token), served),
    get({ ...bearer(token), 'X-Token': token, Referer: `${url}/?token=${token}`, 'User-Agent': token }, served),
    get(bearer(token), served, `?token=${token}`),
    get({}, 401, `?token=${token}`),
    get({}, 401, `/${token}?access_token=${token}`),
    get({ Cookie: `token=${token}` }, 401),
    get(bearer(`${token}x`), 401),
    get({ ...bearer(token), Origin: `http://${token}.test` }, 403),
    get({ ...bearer(token), Host: `${token}.test` }, 403),
    { method: 'DELETE', target: '/v1/models/m', headers: bearer(token), status: 404 },
  ]);
}

async function send(daemon: Daemon, { method, target, headers, status }: Request): Promise<void> {
  const all = { Host: new URL(daemon.url).host, Connection: 'close', ...headers };
  const lines = Object.entries(all).map(([name, value]) => `${name}: ${value}\r\n`);
  const bytes = Buffer.from(`${method} ${target} HTTP/1.1\r\n${lines.join('')}\r\n`);
  const { reply } = await exchange(portOf(daemon), bytes, { timeoutMs: CLOSE_MS_MAX });
  checkReply(reply, { daemon, status, what: `${method} ${target}` });
}

/** Tries an upgrade that has to fail: the token is in the address, is nearly right, or is a subprotocol without its prefix. */
async function upgrade(daemon: Daemon, random: Random): Promise<void> {
  const { token } = daemon;
  const without = upgradeRequest(daemon, { Authorization: '' });
  const attacks = [
    without.replace('/v1/ws', `/v1/ws?token=${token}`),
    upgradeRequest(daemon, { Authorization: '', 'Sec-WebSocket-Protocol': `gptd.v1, bearer.${token.slice(1)}` }),
    upgradeRequest(daemon, { Authorization: '', 'Sec-WebSocket-Protocol': `gptd.v1, ${token}` }),
  ];
  const { reply } = await exchange(portOf(daemon), Buffer.from(random.pick(attacks)), { timeoutMs: CLOSE_MS_MAX });
  checkReply(reply, { daemon, status: 401, what: 'an upgrade' });
}

function checkReply(
  reply: string,
  { daemon, status, what }: { readonly daemon: Daemon; readonly status: number; readonly what: string },
): void {
  const shown = `${what} got ${reply.slice(0, 200)}`.replaceAll(daemon.token, 'TOKEN');
  check(reply.startsWith(`HTTP/1.1 ${status} `), `${shown} instead of ${status}`);
  // Only the refusal of a host or an origin quotes what was sent.
  check(status === 403 || !reply.includes(daemon.token), `${shown}, which contains the token`);
}

/** Runs jobs of five kinds. The import fails. */
async function work(home: DataHome, client: RawClient): Promise<void> {
  await wholeLog(home, (await submit(home, 'm'))!);
  await client.follow('generate', { model: 'm', prompt: 'Line', maxTokens: 5 });
  await client.follow('export', { model: 'm', format: 'safetensors' });
  await client.follow('params', { config: 'GPT_CONFIG_124M' });
  await client.follow('import', { model: 'i', files: { 'model.safetensors': '0'.repeat(64) } }).catch(() => undefined);
  check(ofType(client.events, 'succeeded').length === 3, 'the jobs of the busy daemon did not succeed');
}

/** Returns the files below `dir` that contain `text`. */
const filesWith = (dir: string, text: string): string[] =>
  readdirSync(dir, { recursive: true, withFileTypes: true })
    .filter((entry) => entry.isFile())
    .map(({ parentPath, name }) => path.join(parentPath, name))
    .filter((file) => readFileSync(file).includes(text))
    .map((file) => path.relative(dir, file));

async function tokenStaysSecret({ tries, random, tally, home: makeHome }: Context): Promise<Outcome> {
  const home = makeHome();
  const daemon = await home.start({ flags: ['--log-level', 'trace'] });
  const { token, pid } = daemon;
  await makeModel(home, 'm');
  const client = await home.connect();
  const working = work(home, client);
  await inParallel(tries, {
    width: WIDTH,
    work: () =>
      tally.try(() => (random.once(5) ? upgrade(daemon, random) : send(daemon, requestWithToken(daemon, random)))),
  });
  await working;
  const backup = await home.cli(['backup', path.join(home.dir, 'copy.db')]);
  const outputs = [
    ...[backup.stdout, backup.stderr, readFileSync(`/proc/${pid}/cmdline`, 'utf8')],
    ...(await Promise.all([['doctor'], ['status'], ['jobs', '--all', '--json']].map((args) => home.cli(args)))).flatMap(
      ({ stdout, stderr }) => [stdout, stderr],
    ),
    ...[JSON.stringify(client.events), JSON.stringify(await client.request('daemon.status'))],
    await (await fetch(`${daemon.url}/metrics`, { headers: bearer(token) })).text(),
  ];
  client.close();
  const whileRunning = filesWith(home.dir, token);
  await home.signal('SIGTERM');
  const { stdout, stderr } = await daemon.process.ended;
  check(stderr.includes('refused: '), 'the log tells of no refusal');
  for (const text of [...outputs, stdout, stderr])
    check(!text.includes(token), `the token is in ${text.slice(0, 100)}`);
  // The search finds the token's own file, and no other.
  for (const files of [whileRunning, filesWith(home.dir, token)])
    check(files.join() === 'token', `the token is in ${files.join(', ')}`);
  tally.note(`searched the log (${stderr.length} characters), ${outputs.length} outputs and every file`);
  return tally.outcome();
}

export const secretRows: readonly Row[] = [
  {
    name: 'R31',
    title: 'the token is always needed, taken from no address or cookie, and found in no log, event, file or argument',
    tries: 5000,
    short: 100,
    run: tokenStaysSecret,
  },
];
