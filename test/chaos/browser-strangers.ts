// Web pages in a real Chromium try to reach the daemon on their visitor's machine. Every page is served from loopback too: a browser
// keeps pages of the network away from loopback by itself, and the daemon would have nothing to refuse. The daemon's log proves that
// each request came through to it. Pages of the same origins get in once they are allowed, which proves that they could.

import http from 'node:http';
import type { AddressInfo } from 'node:net';
import type { Daemon, DataHome } from '../e2e/daemon-fixture.ts';
import { Browser, CHROMIUM, type Page } from './browser.ts';
import { TINY } from './probe.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';

const EVIL_NAME = 'evil.test';
const SANDBOXED = '/sandboxed';
/** What a page may get, however it asks: none of these replies is of use to it. */
const NOTHING = ['refused', 'opaque', '401', '403'];

/** Every path is an empty page, in which scripts are evaluated. The page of one path has no origin: it is `null`. */
class EvilServer {
  readonly #server = http.createServer(({ url }, response) => {
    response.setHeader('content-type', 'text/html');
    if (url === SANDBOXED) response.setHeader('content-security-policy', 'sandbox allow-scripts');
    response.end('<!doctype html><title>Kittens</title>');
  });

  async listen(host: string): Promise<number> {
    await new Promise<void>((resolve) => this.#server.listen(0, host, resolve));
    return (this.#server.address() as AddressInfo).port;
  }

  close(): void {
    this.#server.close();
    this.#server.closeAllConnections();
  }
}

interface Source {
  readonly page: string;
  readonly origin: string;
  /** The address that a script of the page asks. */
  readonly asks: (daemon: Daemon) => string;
}

interface Means {
  readonly name: string;
  readonly script: (base: string, token: string) => string;
  /** Whether the browser sends an Origin that the daemon can refuse. Without one, only the token is missing. */
  readonly sendsOrigin: boolean;
}

const submission = JSON.stringify({
  jsonrpc: '2.0',
  id: 1,
  method: 'job.submit',
  params: { kind: 'create', spec: { model: 'stranger', config: TINY } },
});

/** A script that resolves to the daemon's reply, or to `refused`. */
const webSocket = (base: string, protocols: readonly string[]): string => `new Promise((resolve) => {
  const socket = new WebSocket(${JSON.stringify(`${base.replace('http', 'ws')}/v1/ws`)}, ${JSON.stringify(protocols)});
  socket.onopen = () => socket.send(${JSON.stringify(submission)});
  socket.onmessage = ({ data }) => resolve(data);
  socket.onclose = () => resolve('refused');
})`;
const fetched = (url: string, init: object): string => `fetch(${JSON.stringify(url)}, ${JSON.stringify(init)}).then(
  ({ type, status }) => (type === 'opaque' ? type : String(status)),
  () => 'refused',
)`;
const completion = JSON.stringify({ model: 'm', prompt: 'x', max_tokens: 1 });

const MEANS: readonly Means[] = [
  {
    name: 'a WebSocket with the token',
    script: (base, token) => webSocket(base, ['gptd.v1', `bearer.${token}`]),
    sendsOrigin: true,
  },
  { name: 'a WebSocket without a token', script: (base) => webSocket(base, ['gptd.v1']), sendsOrigin: true },
  {
    name: 'a request with the token',
    script: (base, token) => fetched(`${base}/v1/models`, { headers: { authorization: `Bearer ${token}` } }),
    sendsOrigin: true,
  },
  {
    name: 'a simple request, which asks nobody first',
    script: (base) => fetched(`${base}/v1/models`, { mode: 'no-cors' }),
    sendsOrigin: false,
  },
  {
    name: 'a simple request with a body',
    script: (base) => fetched(`${base}/v1/completions`, { mode: 'no-cors', method: 'POST', body: completion }),
    sendsOrigin: true,
  },
];

async function pagesOfOthers({ tries, tally, home: makeHome }: Context): Promise<Outcome> {
  const browser = new Browser({ localNames: [EVIL_NAME] });
  const [servers, pages]: [EvilServer[], Page[]] = [[new EvilServer(), new EvilServer()], []];
  try {
    const ports = [await servers[0].listen('127.0.0.1'), await servers[1].listen('127.0.0.2')];
    const home = makeHome();
    const daemon = await home.start();
    const foreign = [
      `http://127.0.0.2:${ports[1]}`,
      `http://127.0.0.1:${ports[0]}`,
      `http://localhost:${ports[0]}`,
      `http://${EVIL_NAME}:${ports[0]}`,
    ];
    const direct = ({ url }: Daemon): string => url;
    const others: Source[] = [
      ...foreign.map((origin) => ({ page: `${origin}/`, origin, asks: direct })),
      { page: `${foreign[0]}${SANDBOXED}`, origin: 'null', asks: direct },
    ];
    // A name that led to the stranger at first leads to the daemon later, so the page asks its own origin.
    const rebound = daemon.url.replace('127.0.0.1', EVIL_NAME);
    const sources: Source[] = [...others, { page: `${rebound}/healthz`, origin: rebound, asks: () => rebound }];
    for (const { page } of sources) pages.push(await browser.open(page));
    const expected: number[] = [];
    for (let i = 0; i < tries; i++) {
      const at = i % sources.length;
      const means = MEANS[Math.floor(i / sources.length) % MEANS.length];
      const source = sources[at];
      await tally.try(async () => {
        check((await pages[at].evaluate('self.origin')) === source.origin, `the page's origin is not ${source.origin}`);
        const got = await pages[at].evaluate(means.script(source.asks(daemon), daemon.token));
        check(NOTHING.includes(String(got)), `${means.name} from ${source.origin} got ${String(got)}`);
      });
      expected.push(means.sendsOrigin || source.origin === rebound ? 403 : 401);
    }
    await nothingCameIn(home, expected);
    const allowed = await makeAllowed(makeHome(), others);
    for (const [at, { origin }] of others.entries())
      await tally.try(async () =>
        answered(await pages[at].evaluate(MEANS[0].script(allowed.url, allowed.token)), origin),
      );
    await tally.try(async () => {
      const own = await browser.open(`${allowed.url}/healthz`);
      pages.push(own);
      answered(await own.evaluate(MEANS[0].script(allowed.url, allowed.token)), 'of its own');
      const got = await own.evaluate(MEANS[1].script(allowed.url, ''));
      check(got === 'refused', `a WebSocket without a token got ${String(got)} on the daemon's own page`);
    });
    tally.note(
      `${sources.length} kinds of pages, ${MEANS.length} means; then ${others.length + 1} pages that are allowed`,
    );
    return tally.outcome();
  } finally {
    await browser.close();
    for (const server of servers) server.close();
  }
}

const makeAllowed = (home: DataHome, others: readonly Source[]): Promise<Daemon> =>
  home.start({ flags: others.flatMap(({ origin }) => ['--allow-origin', origin]) });

function answered(got: unknown, origin: string): void {
  check(String(got).includes('"jobId"'), `an allowed page (${origin}) was told ${String(got)}`);
}

/** Checks that there is no job, and that each refusal is in the log: then the daemon has made it, and not the browser. */
async function nothingCameIn(home: DataHome, expected: readonly number[]): Promise<void> {
  const client = await home.connect();
  const { jobs } = await client.request<{ jobs: readonly unknown[] }>('job.list', { all: true });
  check(jobs.length === 0, `strangers have made ${jobs.length} jobs`);
  client.close();
  await home.signal('SIGTERM');
  const { stderr } = await home.daemon.process.ended;
  const told = stderr
    .split('\n')
    .filter((line) => line.includes('refused: '))
    .map((line) => JSON.parse(line) as { readonly status: number; readonly path: string })
    // A browser also asks by itself, for an icon for example.
    .filter(({ path }) => path.startsWith('/v1/'))
    .map(({ status }) => status);
  for (const status of [401, 403]) {
    const [wanted, had] = [expected, told].map((all) => all.filter((one) => one === status).length);
    check(had === wanted, `the daemon has told of ${had} refusals with ${status}, not ${wanted}`);
  }
}

export const browserRows: readonly Row[] = [
  {
    name: 'R27',
    title: 'pages of other origins, `null` and rebound names are refused in a real Chromium, and allowed ones let in',
    tries: 300,
    short: 30,
    needs: [CHROMIUM],
    run: pagesOfOthers,
  },
];
