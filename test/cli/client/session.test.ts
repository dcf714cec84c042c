// Sessions over connections that break: events neither repeat nor go missing, requests are sent again, and a request that cannot
// be answered rejects with the cause. The peer speaks literal frames.

import { afterEach, describe, expect, it } from 'vitest';
import { connect } from '../../../src/cli/client/connect.ts';
import { ConnectionLost } from '../../../src/cli/client/faults.ts';
import { openSession, type Session } from '../../../src/cli/client/session.ts';
import { PEER_TOKEN, startPeer, type PeerConnection, type PeerRequest, type ScriptedPeer } from './scripted-peer.ts';

const opened: { close(): unknown }[] = [];
afterEach(async () => {
  for (const resource of opened.splice(0).reverse()) await resource.close();
});

async function peerWith(answer: (connection: PeerConnection, request: PeerRequest) => void): Promise<ScriptedPeer> {
  const peer = await startPeer(answer);
  opened.push(peer);
  return peer;
}

async function sessionWith(peer: ScriptedPeer): Promise<Session> {
  const session = await openSession({ connect: () => connect({ url: peer.url, token: PEER_TOKEN }) });
  opened.push(session);
  return session;
}

const log = (seq: number): Readonly<Record<string, unknown>> => ({
  jobId: 'j',
  seq,
  at: 0,
  type: 'log',
  data: { message: `${seq}` },
});
const succeeded = (seq: number): Readonly<Record<string, unknown>> => ({
  jobId: 'j',
  seq,
  at: 0,
  type: 'succeeded',
  data: { result: 1 },
});

describe('events', () => {
  it('go on after the last event that was seen, whatever breaks', async () => {
    const peer = await peerWith((connection, request) => {
      const { after } = request.params as { after: number };
      if (connection.index === 1) {
        connection.drop();
        return;
      }
      connection.reply(request, { lastSeq: 6 });
      // The first connection repeats an event, then dies after the third.
      const seqs = connection.index === 0 ? [1, 1, 2, 3] : [3, 4, 5];
      for (const seq of seqs) connection.event(log(seq));
      if (connection.index === 0) connection.drop();
      else connection.event(succeeded(6));
      expect(after).toBe(connection.index === 0 ? 0 : 3);
    });
    const session = await sessionWith(peer);
    const seqs: number[] = [];
    for await (const event of session.events('j')) seqs.push(event.seq);
    expect(seqs).toEqual([1, 2, 3, 4, 5, 6]);
    expect(peer.requests.map((request) => request.params['after'])).toEqual([0, 3, 3]);
  });

  it('start after the event that was asked for', async () => {
    const peer = await peerWith((connection, request) => {
      connection.event(succeeded(5));
      connection.reply(request, { lastSeq: 5 });
    });
    const session = await sessionWith(peer);
    const seqs: number[] = [];
    for await (const event of session.events('j', { after: 4 })) seqs.push(event.seq);
    expect(seqs).toEqual([5]);
  });

  it('are refused when one is missing', async () => {
    const peer = await peerWith((connection, request) => {
      connection.reply(request, { lastSeq: 3 });
      connection.event(log(1));
      connection.event(log(3));
    });
    const events = (await sessionWith(peer)).events('j');
    expect((await events.next()).value).toMatchObject({ seq: 1 });
    await expect(events.next()).rejects.toThrow('The daemon sent event 3 of job j after 1.');
  });

  it("of an unknown job fail with the daemon's own words", async () => {
    const peer = await peerWith((connection, request) =>
      connection.refuse(request, { code: -32000, message: 'There is no job "j".', data: { code: 'not_found' } }),
    );
    const events = (await sessionWith(peer)).events('j');
    await expect(events.next()).rejects.toMatchObject({ message: 'There is no job "j".', reason: 'not_found' });
  });
});

describe('requests', () => {
  it('are sent again unchanged when the connection dies before the answer', async () => {
    const peer = await peerWith((connection, request) => {
      if (connection.index === 0) connection.drop();
      else connection.reply(request, { jobId: 'j', state: 'queued' });
    });
    const session = await sessionWith(peer);
    const params = { kind: 'params', spec: {}, key: 'once' } as const;
    expect(await session.request('job.submit', params)).toEqual({ jobId: 'j', state: 'queued' });
    expect(peer.requests.map((request) => request.params)).toEqual([params, params]);
  });

  it('all reject when the socket dies while they wait', async () => {
    const peer = await peerWith((connection, request) => {
      if (request.id === 2) connection.drop();
    });
    const client = await connect({ url: peer.url, token: PEER_TOKEN });
    const waiting = await Promise.allSettled([client.request('daemon.status', {}), client.request('model.list', {})]);
    for (const outcome of waiting) {
      expect(outcome.status === 'rejected' ? outcome.reason : undefined).toBeInstanceOf(ConnectionLost);
    }
    await expect(client.request('daemon.status', {})).rejects.toThrow(`The connection to ${peer.url} was lost`);
  });

  it('longer than a frame may be are not sent', async () => {
    const peer = await peerWith(() => undefined);
    const session = await sessionWith(peer);
    const spec = { prompt: 'x'.repeat(1 << 20) };
    await expect(session.request('job.submit', { kind: 'generate', spec })).rejects.toMatchObject({
      problem: 'too_long',
      message: expect.stringContaining('it must be at most 1048576') as unknown,
    });
    expect(peer.requests).toEqual([]);
  });
});

describe('connecting', () => {
  it('without the token is refused with an error that names the token', async () => {
    const peer = await peerWith(() => undefined);
    await expect(connect({ url: peer.url, token: undefined })).rejects.toMatchObject({
      problem: 'refused',
      message: expect.stringContaining('needs a token') as unknown,
    });
    await expect(connect({ url: peer.url, token: 'wrong' })).rejects.toThrow('refused the token');
  });

  it('to a port where nobody listens says that no daemon answers', async () => {
    const peer = await startPeer(() => undefined);
    await peer.close();
    await expect(connect({ url: peer.url, token: PEER_TOKEN })).rejects.toMatchObject({
      problem: 'no_daemon',
      message: `No daemon answers at ${peer.url}: start one with "gptd start".`,
    });
  });
});
