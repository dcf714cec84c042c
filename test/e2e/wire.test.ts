// Checks the wire contract in literal frames and requests, as a client does that knows nothing but the contract.

import { createHash, randomBytes } from 'node:crypto';
import { request as httpRequest } from 'node:http';
import net from 'node:net';
import { afterAll, afterEach, beforeAll, describe, expect, test } from 'vitest';
import { WebSocket } from 'ws';
import { VERSION } from '../../src/daemon/protocol/daemon.ts';
import { flagsOf, startedHome, type DataHome, type RawClient } from './daemon-fixture.ts';

const CONFIG = { vocab_size: 256, context_length: 16, emb_dim: 16, n_heads: 2, n_layers: 1, drop_rate: 0 };
const ABSENT = '0'.repeat(64);

let home: DataHome;
let client: RawClient;

beforeAll(async () => {
  home = await startedHome({ flags: ['--allow-origin', 'http://localhost:5173'] });
  client = await home.connect();
  await home.json(['create', 'm', ...flagsOf(CONFIG), '--tokenizer', 'byte']);
});

afterAll(async () => {
  client.close();
  await home.close();
});

interface Reply {
  readonly status: number;
  readonly body: Buffer;
}

interface Asked {
  readonly method?: string;
  readonly headers?: Readonly<Record<string, string>>;
  readonly body?: Uint8Array;
}

/** Sends a request whose headers all come from the test, Host included. */
function ask(path: string, { method = 'GET', headers = {}, body }: Asked = {}): Promise<Reply> {
  return new Promise((resolve, reject) => {
    const request = httpRequest(`${home.daemon.url}${path}`, { method, headers, agent: false }, (response) => {
      const parts: Buffer[] = [];
      response.on('data', (part: Buffer) => parts.push(part));
      response.on('end', () => resolve({ status: response.statusCode ?? 0, body: Buffer.concat(parts) }));
    });
    request.on('error', reject);
    request.end(body);
  });
}

const authorized = (): Record<string, string> => ({ authorization: `Bearer ${home.daemon.token}` });
const jsonOf = ({ body }: Reply): unknown => JSON.parse(body.toString('utf8'));

describe('JSON-RPC', () => {
  test.each<[string, string, object]>([
    ['text that is no JSON', '{"jsonrpc":', { id: null, error: { code: -32700 } }],
    ['an empty frame', '', { id: null, error: { code: -32700 } }],
    ['a number', '7', { id: null, error: { code: -32600 } }],
    ['null', 'null', { id: null, error: { code: -32600 } }],
    ['an array', '[]', { id: null, error: { code: -32600 } }],
    ['no version', '{"id":1001,"method":"daemon.status"}', { id: 1001, error: { code: -32600 } }],
    ['another version', '{"jsonrpc":"1.0","id":1002,"method":"daemon.status"}', { id: 1002, error: { code: -32600 } }],
    ['no method', '{"jsonrpc":"2.0","id":"x"}', { id: 'x', error: { code: -32600 } }],
    [
      'a key that is none of the envelope',
      '{"jsonrpc":"2.0","id":1003,"method":"daemon.status","token":"x"}',
      { id: 1003, error: { code: -32600 } },
    ],
    ['an unknown method', '{"jsonrpc":"2.0","id":1004,"method":"daemon.dance"}', { id: 1004, error: { code: -32601 } }],
    [
      'a method of every object',
      '{"jsonrpc":"2.0","id":1005,"method":"constructor"}',
      { id: 1005, error: { code: -32601 } },
    ],
    ['missing parameters', '{"jsonrpc":"2.0","id":1006,"method":"job.get"}', { id: 1006, error: { code: -32602 } }],
    [
      'parameters of another type',
      '{"jsonrpc":"2.0","id":1007,"method":"job.get","params":{"jobId":7}}',
      { id: 1007, error: { code: -32602 } },
    ],
    [
      'an unknown parameter',
      '{"jsonrpc":"2.0","id":1008,"method":"daemon.status","params":{"verbose":true}}',
      { id: 1008, error: { code: -32602 } },
    ],
    [
      'an unknown kind of job',
      '{"jsonrpc":"2.0","id":1009,"method":"job.submit","params":{"kind":"dance","spec":{}}}',
      { id: 1009, error: { code: -32602 } },
    ],
    [
      'an unknown job',
      '{"jsonrpc":"2.0","id":1010,"method":"job.get","params":{"jobId":"nobody"}}',
      { id: 1010, error: { code: -32000, data: { code: 'not_found' } } },
    ],
    [
      'an unknown model',
      '{"jsonrpc":"2.0","id":1011,"method":"model.get","params":{"model":"nobody"}}',
      { id: 1011, error: { code: -32000, data: { code: 'not_found' } } },
    ],
    [
      'a field that no spec has',
      '{"jsonrpc":"2.0","id":1012,"method":"job.submit","params":{"kind":"generate","spec":{"model":"m","prompt":"x","colour":1}}}',
      { id: 1012, error: { code: -32000, data: { code: 'invalid_spec' } } },
    ],
    [
      'a field that no configuration has',
      '{"jsonrpc":"2.0","id":1013,"method":"job.submit","params":{"kind":"create","spec":{"model":"n","config":{"width":8}}}}',
      { id: 1013, error: { code: -32000, data: { code: 'invalid_spec' } } },
    ],
    [
      'an impossible value',
      '{"jsonrpc":"2.0","id":1014,"method":"job.submit","params":{"kind":"generate","spec":{"model":"m","prompt":"x","temperature":-1}}}',
      { id: 1014, error: { code: -32000, data: { code: 'invalid_spec' } } },
    ],
    [
      'a blob that was not uploaded',
      `{"jsonrpc":"2.0","id":1015,"method":"job.submit","params":{"kind":"train","spec":{"model":"m","data":["sha256:${ABSENT}"]}}}`,
      { id: 1015, error: { code: -32000, data: { code: 'not_found' } } },
    ],
  ])('%s is answered with its error', async (_what, frame, answer) => {
    const response = await client.exchange(frame);
    expect(response).toMatchObject({ jsonrpc: '2.0', ...answer });
    expect((response as { error: { message: string } }).error.message).toMatch(/^\S.{8,}\.$/);
    expect(response).not.toHaveProperty('result');
  });

  test('a good request is answered under its own id, a number or a string', async () => {
    for (const id of [0, 'one', 2.5]) {
      const frame = JSON.stringify({ jsonrpc: '2.0', id, method: 'daemon.status' });
      expect(await client.exchange(frame)).toMatchObject({
        jsonrpc: '2.0',
        id,
        result: { version: VERSION, workers: 1 },
      });
    }
  });

  test('a notification gets no answer', async () => {
    client.socket.send('{"jsonrpc":"2.0","method":"daemon.status"}');
    client.socket.send('{"jsonrpc":"2.0","method":"daemon.dance"}');
    expect(await client.exchange('{"jsonrpc":"2.0","id":2001,"method":"model.list"}')).toMatchObject({ id: 2001 });
  });

  test('requests that wait for a long reply are answered like all others, each once', async () => {
    const methods = Array.from({ length: 200 }, (_, i) => (i % 3 === 0 ? 'daemon.status' : 'job.list'));
    const answers = await Promise.all(methods.map((method) => client.request<object>(method)));
    for (const [i, answer] of answers.entries()) {
      expect(answer).toHaveProperty(methods[i] === 'job.list' ? 'jobs' : 'version');
    }
  });

  test('a subscription answers first, then sends every event from `after` on as notifications', async () => {
    const jobId = await client.submit('params', {});
    await client.subscribe(jobId);
    await client.untilEnd(jobId);
    const other = await home.connect();
    try {
      const frames: unknown[] = [];
      other.socket.on('message', (data) => frames.push(JSON.parse((data as Buffer).toString('utf8'))));
      other.socket.send(
        JSON.stringify({ jsonrpc: '2.0', id: 'sub', method: 'job.subscribe', params: { jobId, after: 1 } }),
      );
      await other.untilEnd(jobId);
      expect(frames).toMatchObject([
        { jsonrpc: '2.0', id: 'sub', result: { lastSeq: 3 } },
        { jsonrpc: '2.0', method: 'job.event', params: { jobId, seq: 2, type: 'started', data: { workers: 1 } } },
        {
          jsonrpc: '2.0',
          method: 'job.event',
          params: { jobId, seq: 3, type: 'succeeded', data: { result: { total_params: 163009536 } } },
        },
      ]);
    } finally {
      other.close();
    }
  });
});

describe('the WebSocket', () => {
  const sockets: WebSocket[] = [];

  afterEach(() => {
    for (const socket of sockets.splice(0)) socket.terminate();
  });

  /** Resolves to the subprotocol that the daemon chose, or to the status of its refusal. */
  function open(
    protocols: readonly string[],
    headers: Readonly<Record<string, string>> = {},
    path = '/v1/ws',
  ): Promise<string | number> {
    const socket = new WebSocket(`${home.daemon.url.replace('http', 'ws')}${path}`, [...protocols], { headers });
    sockets.push(socket);
    return new Promise((resolve, reject) => {
      socket.once('open', () => resolve(socket.protocol));
      socket.once('unexpected-response', (request, response) => {
        resolve(response.statusCode ?? 0);
        request.destroy();
      });
      socket.on('error', reject);
    });
  }

  test('echoes the subprotocol gptd.v1, also when the token comes as a second subprotocol', async () => {
    expect(await open(['gptd.v1'], authorized())).toBe('gptd.v1');
    expect(await open(['gptd.v1', `bearer.${home.daemon.token}`])).toBe('gptd.v1');
    expect(await open([`bearer.${home.daemon.token}`, 'gptd.v1'])).toBe('gptd.v1');
  });

  test.each<[string, () => [string[], Record<string, string>], string | number]>([
    ['no token', () => [['gptd.v1'], {}], 401],
    ['a wrong token', () => [['gptd.v1'], { authorization: 'Bearer wrong' }], 401],
    ['a wrong token as subprotocol', () => [['gptd.v1', 'bearer.wrong'], {}], 401],
    ['a foreign origin', () => [['gptd.v1'], { ...authorized(), origin: 'https://evil.example' }], 403],
    ['the origin null', () => [['gptd.v1'], { ...authorized(), origin: 'null' }], 403],
    ['the host of another', () => [['gptd.v1'], { ...authorized(), host: 'evil.example' }], 403],
    ['its own origin', () => [['gptd.v1'], { ...authorized(), origin: home.daemon.url }], 'gptd.v1'],
    ['an allowed origin', () => [['gptd.v1'], { ...authorized(), origin: 'http://localhost:5173' }], 'gptd.v1'],
  ])('with %s', async (_what, offer, outcome) => {
    expect(await open(...offer())).toBe(outcome);
  });

  test('is at /v1/ws only', async () => {
    expect(await open(['gptd.v1'], authorized(), '/v2/ws')).toBe(404);
  });

  test('closes with 1003 after a binary frame and with 1009 after one that is too long', async () => {
    for (const [frame, code] of [
      [Buffer.from('{}'), 1003],
      [' '.repeat(2 ** 20 + 1), 1009],
    ] as const) {
      const other = await home.connect();
      other.socket.send(frame);
      // Many frames are still on their way when the daemon sends the close frame.
      for (let i = 0; i < 8; i++) other.socket.send(' '.repeat(2 ** 20));
      expect(await other.closed).toBe(code);
    }
    expect(await client.request('daemon.status')).toMatchObject({ version: VERSION });
  });
});

describe('HTTP', () => {
  test('/healthz answers without a token, everything else with one only', async () => {
    const healthz = await ask('/healthz');
    expect(healthz.status).toBe(200);
    expect(jsonOf(healthz)).toEqual({ status: 'ok', version: VERSION });
    for (const path of ['/readyz', '/v1/models', `/v1/blobs/sha256:${ABSENT}`, '/nowhere']) {
      expect(await ask(path)).toMatchObject({ status: 401 });
      expect(await ask(path, { headers: { authorization: 'Bearer wrong' } })).toMatchObject({ status: 401 });
    }
    expect(await ask('/readyz', { headers: authorized() })).toMatchObject({ status: 200 });
    expect(await ask('/nowhere', { headers: authorized() })).toMatchObject({ status: 404 });
  });

  test.each([
    ['another Host', { host: 'evil.example' }],
    ['another Host with the right port', { host: 'evil.example:7433' }],
    ['a foreign Origin', { origin: 'https://evil.example' }],
    ['the Origin null', { origin: 'null' }],
    ['an Origin on another port', { origin: 'http://127.0.0.1:1' }],
  ])('%s is refused with 403 on every path', async (_what, headers) => {
    for (const path of ['/healthz', '/readyz', '/v1/models']) {
      const refused = await ask(path, { headers: { ...authorized(), ...headers } });
      expect(refused.status).toBe(403);
      expect(jsonOf(refused)).toMatchObject({ error: { code: 'unauthorized' } });
    }
  });

  const PAGE = 'http://localhost:5173';
  const crossOriginHeaders = (response: Response): string[] =>
    [...response.headers.keys()].filter((name) => name.startsWith('access-control-'));

  test('a page of an allowed origin may ask, send its token, and read the reply', async () => {
    const url = `${home.daemon.url}/v1/completions`;
    const asks = { 'access-control-request-method': 'POST', 'access-control-request-headers': 'authorization,x-more' };
    const asked = await fetch(url, { method: 'OPTIONS', headers: { origin: PAGE, ...asks } });
    expect(asked.status).toBe(204);
    expect(Object.fromEntries(asked.headers)).toMatchObject({
      'access-control-allow-origin': PAGE,
      'access-control-allow-methods': 'GET, HEAD, POST, PUT',
      'access-control-allow-headers': 'authorization,x-more',
      vary: 'Origin',
    });
    const body = JSON.stringify({ model: 'm', prompt: 'x', max_tokens: 2, stream: true });
    const headers = { ...authorized(), 'content-type': 'application/json', origin: PAGE };
    const answered = await fetch(url, { method: 'POST', headers, body });
    expect([answered.status, answered.headers.get('access-control-allow-origin')]).toEqual([200, PAGE]);
    expect(await answered.text()).toContain('data: [DONE]');
    // The page may also read why it was refused.
    const refused = await fetch(url, { method: 'POST', headers: { origin: PAGE }, body });
    expect([refused.status, refused.headers.get('access-control-allow-origin')]).toEqual([401, PAGE]);
  });

  test.each(['https://evil.example', 'null', 'http://localhost:5174', undefined])(
    'the origin %s may neither ask nor read',
    async (origin) => {
      const from: Record<string, string> = origin === undefined ? {} : { origin };
      const asks = { 'access-control-request-method': 'POST' };
      const status = origin === undefined ? 401 : 403;
      for (const [method, headers] of [
        ['OPTIONS', asks],
        ['OPTIONS', { ...asks, ...authorized() }],
        ['GET', authorized()],
      ] as const) {
        const response = await fetch(`${home.daemon.url}/v1/models`, { method, headers: { ...headers, ...from } });
        expect(crossOriginHeaders(response)).toEqual([]);
        if (origin !== undefined || !('authorization' in headers)) expect(response.status).toBe(status);
      }
    },
  );

  test('requests that were sent ahead are answered one after another, with their bodies', async () => {
    const bytes = randomBytes(300_000);
    const blob = `/v1/blobs/sha256:${createHash('sha256').update(bytes).digest('hex')}`;
    const head = (line: string, more = ''): string =>
      `${line} HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer ${home.daemon.token}\r\n${more}\r\n`;
    const status = head('GET /healthz').repeat(100);
    const socket = net.connect(Number(new URL(home.daemon.url).port), '127.0.0.1');
    const parts: Buffer[] = [];
    socket.on('data', (part: Buffer) => parts.push(part));
    socket.write(status + head(`PUT ${blob}`, `Content-Length: ${bytes.length}\r\n`));
    socket.write(bytes);
    socket.write(status + head(`GET ${blob}`, 'Connection: close\r\n'));
    await new Promise((resolve) => socket.once('close', resolve));
    const reply = Buffer.concat(parts);
    const statuses = [...reply.toString('latin1').matchAll(/HTTP\/1\.1 (\d+)/g)].map(([, code]) => Number(code));
    const hundred = Array<number>(100).fill(200);
    expect(statuses).toEqual([...hundred, 201, ...hundred, 200]);
    expect(reply.subarray(-bytes.length).equals(bytes)).toBe(true);
  });

  test('a loopback name is accepted as Host, whatever the port', async () => {
    for (const host of ['localhost', 'localhost:9000', '127.0.0.1', '[::1]:7433']) {
      expect(await ask('/healthz', { headers: { host } })).toMatchObject({ status: 200 });
    }
  });

  test('/v1/models lists models as OpenAI does', async () => {
    const listed = jsonOf(await ask('/v1/models', { headers: authorized() }));
    expect(listed).toMatchObject({ object: 'list', data: [{ id: 'm', object: 'model', owned_by: 'gptd' }] });
  });

  test('a blob is stored under its digest, read back to the byte, and refused under another', async () => {
    // The body is longer than one chunk of the store, and no multiple of a chunk.
    const body = randomBytes(3_000_001);
    const path = `/v1/blobs/sha256:${createHash('sha256').update(body).digest('hex')}`;
    const headers = authorized();
    expect(await ask(path, { method: 'HEAD', headers })).toMatchObject({ status: 404 });
    expect(await ask(`/v1/blobs/sha256:${ABSENT}`, { method: 'PUT', headers, body })).toMatchObject({ status: 422 });
    expect(await ask(`/v1/blobs/sha256:${ABSENT}`, { method: 'HEAD', headers })).toMatchObject({ status: 404 });
    expect(await ask(path, { method: 'PUT', headers, body })).toMatchObject({ status: 201 });
    expect(await ask(path, { method: 'PUT', headers, body })).toMatchObject({ status: 200 });
    const head = await ask(path, { method: 'HEAD', headers });
    expect(head).toMatchObject({ status: 200, body: Buffer.alloc(0) });
    const stored = await ask(path, { headers });
    expect(stored.status).toBe(200);
    expect(createHash('sha256').update(stored.body).digest('hex')).toBe(path.slice(-64));
    expect(await ask('/v1/blobs/sha256:XYZ', { headers })).toMatchObject({ status: 404 });
  });
});
