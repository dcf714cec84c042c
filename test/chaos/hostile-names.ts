// Names that look like paths go through every method and route that takes a name. The daemon runs under strace, which shows every
// path that the daemon hands to the system: none may contain a hostile name, and none outside the data directory may be written to.

import { readdirSync, readFileSync } from 'node:fs';
import path from 'node:path';
import { RpcRefusal, type DataHome, type RawClient } from '../e2e/daemon-fixture.ts';
import { inParallel, makeModel, TINY } from './probe.ts';
import { exchange, portOf } from './raw-socket.ts';
import type { Random } from './random.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';
import { TRACED_START_NEEDS } from './strace.ts';

/** Every hostile name contains this word, and nothing else on this machine does. */
const CANARY = 'zqcanary';
const PIECES = [
  ...['..', '../', '..\\', '/', '//', './', '~/', '/etc/passwd', '/tmp/', '/proc/self/', 'file:///', 'C:\\', '\\\\?\\'],
  ...['%2e%2e%2f', '%2f', '%00', '%252e', '\u0000', '\n', '\r', '\t', ' ', '．．／', '‥', '\u202e', 'ü', '😀'],
  ...['gptd.db', 'gptd.db-wal', 'token', '.new', '.bak', '@best', '@1', '@', ':', '*', '?', '|', ';', "'", '"', '`'],
  ...['$HOME', '$(id)', '%s', '__proto__', 'constructor', 'a', 'A', '0', '-', '--', '_', '.', 'x'.repeat(300)],
];
const LOOKS_LIKE_A_NAME = /^[\w.@-]+$/;
const DIGEST = `sha256:${'0'.repeat(64)}`;
const CLOSE_MS_MAX = 10_000;
const WIDTH = 8;
/** The system calls that change a file system. */
const WRITES =
  /^(rename|unlink|mkdir|rmdir|link|symlink|chmod|fchmodat|chown|lchown|fchownat|truncate|mknod|creat|utime)/;
const OPENS_TO_WRITE = /O_WRONLY|O_RDWR|O_CREAT|O_TRUNC/;

function hostileName(random: Random): string {
  const pieces = Array.from({ length: random.integer(1, 8) }, () => random.pick(PIECES));
  pieces.splice(random.integer(0, pieces.length), 0, CANARY);
  return pieces.join('');
}

/** One way of handing over a name. Resolves to whether it was refused. */
type Means = (name: string) => Promise<boolean>;

function meansOf(home: DataHome, client: RawClient): readonly Means[] {
  const { daemon } = home;
  const asks =
    (method: string, params: (name: string) => object): Means =>
    (name) =>
      client.request(method, params(name)).then(
        () => false,
        (error: unknown) => {
          if (error instanceof RpcRefusal) return true;
          throw error;
        },
      );
  const submits = (kind: string, spec: (name: string) => object): Means =>
    asks('job.submit', (name) => ({ kind, spec: spec(name) }));
  const routes =
    (method: string, target: (name: string) => string, body = ''): Means =>
    async (name) => {
      const { host } = new URL(daemon.url);
      const head = `${method} ${target(name)} HTTP/1.1\r\nHost: ${host}\r\nAuthorization: Bearer ${daemon.token}\r\n`;
      const rest = `Connection: close\r\nContent-Length: ${Buffer.byteLength(body)}\r\n\r\n${body}`;
      const { reply } = await exchange(portOf(daemon), Buffer.from(head + rest), { timeoutMs: CLOSE_MS_MAX });
      return !/^HTTP\/1\.1 [123]/.test(reply);
    };
  return [
    submits('create', (model) => ({ model, config: TINY })),
    submits('create', (config) => ({ model: 'x', config })),
    submits('create', (tokenizer) => ({ model: 'x', config: TINY, tokenizer })),
    submits('train', (model) => ({ model, data: [DIGEST] })),
    submits('train', (data) => ({ model: 'm', data: [data] })),
    submits('generate', (model) => ({ model, prompt: 'x' })),
    submits('evaluate', (model) => ({ model, data: [DIGEST] })),
    submits('import', (model) => ({ model, files: { 'model.safetensors': DIGEST } })),
    submits('import', (file) => ({ model: 'x', files: { 'model.safetensors': DIGEST, [file]: DIGEST } })),
    submits('import', (file) => ({ model: 'x', files: { 'model.safetensors': file } })),
    submits('export', (model) => ({ model, format: 'safetensors' })),
    submits('export', (format) => ({ model: 'm', format })),
    ...['model.get', 'model.delete', 'model.history', 'model.verify', 'checkpoint.list'].map((method) =>
      asks(method, (model) => ({ model })),
    ),
    ...['job.get', 'job.cancel', 'job.pause', 'job.resume', 'job.subscribe'].map((method) =>
      asks(method, (jobId) => ({ jobId })),
    ),
    routes('GET', (name) => `/v1/models/${encodeURIComponent(name)}`),
    routes('GET', (name) => `/v1/models/${name}`),
    routes('GET', (name) => `/v1/blobs/${name}`),
    routes('PUT', (name) => `/v1/blobs/sha256:${encodeURIComponent(name)}`, 'x'),
    routes('GET', (name) => `/${name}`),
    (name) => routes('POST', () => '/v1/completions', JSON.stringify({ model: name, prompt: 'x' }))(name),
  ];
}

async function namesLeadNowhere({ tries, random, tally, home: makeHome }: Context): Promise<Outcome> {
  const home = makeHome();
  const trace = path.join(home.dir, 'trace');
  const under = ['strace', '-f', '-qq', '--seccomp-bpf', '-e', 'trace=%file', '-o', trace];
  await home.start({ under, flags: ['--log-level', 'silent'] });
  await makeModel(home);
  const client = await home.connect();
  const means = meansOf(home, client);
  const tree = (): string => readdirSync(home.dir, { recursive: true }).sort().join(' ');
  const before = tree();
  await inParallel(tries, {
    width: WIDTH,
    work: (i) =>
      tally.try(async () => {
        const name = hostileName(random);
        const refused = await means[i % means.length](name);
        check(
          refused || LOOKS_LIKE_A_NAME.test(name),
          `${JSON.stringify(name)} was accepted by means ${i % means.length}`,
        );
      }),
  });
  await client.follow('generate', { model: 'm', prompt: 'x', maxTokens: 1 });
  client.close();
  check(tree() === before, `the data directory held ${before} and holds ${tree()}`);
  await home.signal('SIGTERM');
  checkTrace(readFileSync(trace, 'utf8'), home.dir);
  tally.note(`${means.length} ways of handing over a name`);
  return tally.outcome();
}

/** Checks the lines of strace: each has a thread's id, the call with its paths in quotes, and its result. */
function checkTrace(trace: string, dir: string): void {
  check(!trace.includes(CANARY), `a name became a path: ${/.*zqcanary.*/.exec(trace)?.[0].slice(0, 300) ?? ''}`);
  let ownWrites = 0;
  for (const line of trace.split('\n')) {
    const call = line.replace(/^\d+\s+/, '');
    if (!WRITES.test(call) && !OPENS_TO_WRITE.test(call)) continue;
    const paths = [...call.matchAll(/"((?:[^"\\]|\\.)*)"/g)].map(([, text]) => text);
    if (paths.every((text) => text.startsWith(`${dir}/`) || text === dir)) ownWrites += 1;
    else check(paths.join() === '/dev/null', `a call wrote outside of the data directory: ${line.slice(0, 300)}`);
  }
  check(ownWrites > 0, 'the trace has no write at all');
}

export const nameRows: readonly Row[] = [
  {
    name: 'R29',
    title: 'names that would be paths lead nowhere: no file outside the data directory is touched for them',
    tries: 10_000,
    short: 280,
    needs: TRACED_START_NEEDS,
    run: namesLeadNowhere,
  },
];
