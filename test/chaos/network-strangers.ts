// A daemon is on a network, and a stranger's machine there guesses the token. Two network namespaces, joined by a virtual cable, stand
// for the machines. A daemon that has no token yet does not open itself to a network at all.

import { spawn, spawnSync } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { existsSync, statSync } from 'node:fs';
import path from 'node:path';
import process from 'node:process';
import { text } from 'node:stream/consumers';
import { fileURLToPath } from 'node:url';
import type { DataHome } from '../e2e/daemon-fixture.ts';
import { portOf } from './raw-socket.ts';
import type { Random } from './random.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';

const DAEMON_ADDRESS = '10.231.7.1';
const STRANGER_ADDRESS = '10.231.7.2';
const UNSAFE_CONFIGURATION = 78;
const REFUSED = 401;
const GUESSER = fileURLToPath(new URL('guess-tokens.js', import.meta.url));

const mayMakeNetworks = spawnSync('unshare', ['--net', 'true']).status === 0;

function ip(...args: readonly string[]): void {
  const { status, stderr } = spawnSync('ip', args, { encoding: 'utf8' });
  check(status === 0, `ip ${args.join(' ')} ended with ${String(status)}: ${stderr}`);
}

/** Joins two namespaces with an address each. Nothing else can be reached from there, and nothing reaches in. */
class Cable {
  readonly daemonSide = `gptd-d-${process.pid}-${randomBytes(2).toString('hex')}`;
  readonly strangerSide = this.daemonSide.replace('-d-', '-s-');

  connect(): void {
    const [a, b] = [this.daemonSide, this.strangerSide];
    for (const side of [a, b]) ip('netns', 'add', side);
    ip('-n', a, 'link', 'add', 'eth0', 'type', 'veth', 'peer', 'name', 'eth0', 'netns', b);
    for (const [side, address] of [
      [a, DAEMON_ADDRESS],
      [b, STRANGER_ADDRESS],
    ]) {
      ip('-n', side, 'address', 'add', `${address}/24`, 'dev', 'eth0');
      for (const device of ['lo', 'eth0']) ip('-n', side, 'link', 'set', device, 'up');
    }
  }

  cut(): void {
    for (const side of [this.daemonSide, this.strangerSide]) spawnSync('ip', ['netns', 'delete', side]);
  }
}

const within = (side: string): readonly string[] => ['ip', 'netns', 'exec', side];

interface Guess {
  readonly path: string;
  readonly headers: Readonly<Record<string, string>>;
}

const get = (headers: Guess['headers'], query = ''): Guess => ({ path: `/v1/models${query}`, headers });

const upgrade = (protocols: readonly string[], headers: Guess['headers'] = {}): Guess => ({
  path: '/v1/ws',
  headers: {
    Connection: 'Upgrade',
    Upgrade: 'websocket',
    'Sec-WebSocket-Version': '13',
    'Sec-WebSocket-Key': randomBytes(16).toString('base64'),
    'Sec-WebSocket-Protocol': ['gptd.v1', ...protocols].join(', '),
    ...headers,
  },
});

const withToken = (token: string): readonly Guess[] => [
  get({ Authorization: `Bearer ${token}` }),
  upgrade([], { Authorization: `Bearer ${token}` }),
  upgrade([`bearer.${token}`]),
];

/** Makes a wrong token, which is often close to the right one. */
function wrongToken(token: string, random: Random): string {
  const at = random.integer(0, token.length - 1);
  const other = random.bytes(32).toString('base64url');
  switch (random.integer(0, 6)) {
    case 0:
      return token.slice(0, at + 1).slice(0, token.length - 1);
    case 1:
      return token.slice(at + 1) || 'x';
    case 2:
      return token + other.slice(0, random.integer(1, 10));
    case 3:
      return token.slice(0, at) + (token[at] === 'A' ? 'B' : 'A') + token.slice(at + 1);
    case 4:
      return token.toLowerCase() === token ? token.toUpperCase() : token.toLowerCase();
    case 5:
      return random.pick(['null', 'undefined', '*', 'true', 'token', 'Bearer', '0', 'x'.repeat(8000), '__proto__']);
    default:
      return other;
  }
}

/** Makes a request with a wrong token, or with the right one in a place where the daemon does not look for it. */
function wrongGuess(token: string, random: Random): Guess {
  if (!random.once(6)) return random.pick(withToken(wrongToken(token, random)));
  const basic = Buffer.from(`gptd:${token}`).toString('base64');
  return random.pick([
    get({}),
    get({ Authorization: '' }),
    get({ Authorization: token }),
    get({ Authorization: `Token ${token}` }),
    get({ Authorization: `Basic ${basic}` }),
    get({ Cookie: `token=${token}; authorization=Bearer ${token}` }),
    get({ 'X-Api-Key': token, 'X-Token': token }),
    get({}, `?token=${token}`),
    get({}, `?access_token=${token}&authorization=Bearer%20${token}`),
    upgrade([]),
    upgrade([token]),
    upgrade([`Bearer.${token}`]),
    { ...upgrade([]), path: `/v1/ws?token=${token}` },
  ]);
}

/** Resolves to the statuses that the stranger gets. */
async function ask(cable: Cable, port: number, guesses: readonly Guess[]): Promise<number[]> {
  const [file, ...rest] = [...within(cable.strangerSide), process.execPath, GUESSER];
  const child = spawn(file, rest, { stdio: ['pipe', 'pipe', 'pipe'] });
  child.stdin.end(JSON.stringify({ host: DAEMON_ADDRESS, port, guesses }));
  const [out, err] = await Promise.all([text(child.stdout), text(child.stderr)]);
  check(err === '', `the stranger's process said ${err}`);
  return JSON.parse(out) as number[];
}

async function strangersOnANetwork(context: Context): Promise<Outcome> {
  const { tries, random, tally, home: makeHome } = context;
  const cable = new Cable();
  try {
    cable.connect();
    for (const host of [DAEMON_ADDRESS, '0.0.0.0', '::'])
      await tally.try(() => refusesToStart(makeHome(), { cable, host }));
    const home = makeHome();
    await home.start();
    await home.signal('SIGTERM');
    const flags = ['--host', DAEMON_ADDRESS, '--log-level', 'error'];
    const daemon = await home.start({ under: within(cable.daemonSide), flags });
    const { token } = daemon;
    check((statSync(path.join(home.dir, 'token')).mode & 0o777) === 0o600, 'others may read the token');
    const guesses = Array.from({ length: tries }, () => wrongGuess(token, random));
    const statuses = await ask(cable, portOf(daemon), guesses);
    for (const [i, status] of statuses.entries()) {
      if (status === REFUSED) tally.passed();
      else tally.failed(`${JSON.stringify(guesses[i]).replaceAll(token, 'TOKEN')} got ${status}`);
    }
    // After all of it, the right token still lets a client in.
    const welcome = await ask(cable, portOf(daemon), withToken(token));
    check(welcome.join() === '200,101,101', `the right token got ${welcome.join()}`);
    return tally.outcome();
  } finally {
    cable.cut();
  }
}

async function refusesToStart(home: DataHome, { cable, host }: { cable: Cable; host: string }): Promise<void> {
  const run = home.run(['start', '--port', '0', '--host', host], { under: within(cable.daemonSide) });
  const { exitCode, stderr } = await run.ended;
  check(
    exitCode === UNSAFE_CONFIGURATION,
    `without a token on ${host} the daemon ended with ${String(exitCode)}: ${stderr}`,
  );
  check(!existsSync(path.join(home.dir, 'token')), `a token was made for ${host}`);
}

export const networkRows: readonly Row[] = [
  {
    name: 'R28',
    title: 'a daemon without a token opens to no network; with one, wrong tokens fail from another machine',
    tries: 10_000,
    short: 300,
    needs: ['ip', 'unshare', ...(mayMakeNetworks ? [] : ['the right to make network namespaces'])],
    run: strangersOnANetwork,
  },
];
