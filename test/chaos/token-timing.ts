// Tests whether the time of a refusal tells how much of a token is right. Wrong tokens with right beginnings of several lengths are
// tried in a random order, so that the machine's other work falls on all of them alike, and their times are compared by rank. In the
// full form a server that compares letter by letter shows that the comparison would find a leak.

import { createHash } from 'node:crypto';
import http from 'node:http';
import type { AddressInfo } from 'node:net';
import net from 'node:net';
import { portOf } from './raw-socket.ts';
import type { Random } from './random.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';

/** The shares of the token that are right. */
const SHARES = [0, 0.25, 0.5, 0.75, 1];
/** A difference may have so many standard deviations: chance alone exceeds them about once in 500 million times. */
const DEVIATIONS_MAX = 6;
const LETTERS = Array.from('ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_');

/** Makes a wrong token as long as the right one. The first `right` letters are right, and the one after them is wrong. */
function wrongToken(token: string, right: number, random: Random): string {
  const other = random.pick(LETTERS.filter((letter) => letter !== token[right]));
  const rest = Array.from({ length: token.length - right - 1 }, () => random.pick(LETTERS));
  return token.slice(0, right) + other + rest.join('');
}

/** Resolves to the microseconds from sending a request to the first byte of its refusal. */
function refusalUs(port: number, request: Buffer): Promise<number> {
  return new Promise((resolve, reject) => {
    const socket = net.connect(port, '127.0.0.1');
    let sentAt = 0;
    socket.once('connect', () => {
      sentAt = performance.now();
      socket.write(request);
    });
    socket.once('data', (data) => {
      const tookUs = (performance.now() - sentAt) * 1000;
      const status = data.toString('latin1').slice(0, 13);
      socket.destroy();
      if (status === 'HTTP/1.1 401 ') resolve(tookUs);
      else reject(new Error(`a wrong token got ${status}`));
    });
    socket.once('error', reject);
  });
}

/** Makes `count` requests. Resolves to their times, by the share of the token that was right. */
async function refusals(
  { port, token }: { readonly port: number; readonly token: string },
  { count, random }: { readonly count: number; readonly random: Random },
): Promise<number[][]> {
  // All are made before the first is tried, because one that takes longer to make would find the processor in another state.
  const guesses = Array.from({ length: count }, () => {
    const kind = random.integer(0, SHARES.length - 1);
    const guess = wrongToken(token, Math.round(SHARES[kind] * (token.length - 1)), random);
    const head = `GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1:${port}\r\nAuthorization: Bearer ${guess}\r\n\r\n`;
    return { kind, request: Buffer.from(head) };
  });
  const times: number[][] = SHARES.map(() => []);
  for (const { kind, request } of guesses) times[kind].push(await refusalUs(port, request));
  return times;
}

/** Returns by how many standard deviations the ranks of `b` among both differ from chance (Mann and Whitney's test). */
function deviations(a: readonly number[], b: readonly number[]): number {
  const ranked = [...a.map((us) => ({ us, isB: false })), ...b.map((us) => ({ us, isB: true }))];
  ranked.sort((one, other) => one.us - other.us);
  let [fasterOfA, pairs] = [0, 0];
  for (const { isB } of ranked) {
    if (isB) pairs += fasterOfA;
    else fasterOfA += 1;
  }
  const deviation = Math.sqrt((a.length * b.length * (a.length + b.length + 1)) / 12);
  return (pairs - (a.length * b.length) / 2) / deviation;
}

const HASHES_A_LETTER = 10;

/** Starts a server that compares letter by letter and stops at the first wrong one. */
async function carelessServer(token: string): Promise<http.Server> {
  const server = http.createServer((request, response) => {
    const offered = (request.headers.authorization ?? '').slice('Bearer '.length);
    const sameLetter = (i: number): boolean => {
      for (let hash = 0; hash < HASHES_A_LETTER; hash++) createHash('sha256').update(offered[i]).digest();
      return offered[i] === token[i];
    };
    for (let i = 0; i < token.length && sameLetter(i); i++);
    response.writeHead(401, { connection: 'close' }).end();
  });
  await new Promise<void>((resolve) => server.listen(0, '127.0.0.1', resolve));
  return server;
}

/** The careless server needs enough tries to be told from the noise of a busy machine. */
const CONTROL_TRIES_MIN = 2000;

async function tokenTiming({ tries, random, tally, home: makeHome }: Context): Promise<Outcome> {
  const daemon = await makeHome().start();
  const times = await refusals({ port: portOf(daemon), token: daemon.token }, { count: tries, random });
  const found = times.map((some) => deviations(times[0], some));
  tally.passed(tries);
  for (const [kind, deviation] of found.entries()) {
    if (Math.abs(deviation) > DEVIATIONS_MAX)
      tally.fault(`with ${SHARES[kind]} of the token right, refusals differ by ${deviation.toFixed(1)} deviations`);
  }
  const shown = found.slice(1).map((deviation) => deviation.toFixed(1));
  tally.note(
    `refusals differ by ${shown.join(', ')} standard deviations of chance when ${SHARES.slice(1).join(', ')} is right`,
  );
  if (tries < CONTROL_TRIES_MIN) return tally.outcome();
  const server = await carelessServer(daemon.token);
  try {
    const { port } = server.address() as AddressInfo;
    const careless = await refusals({ port, token: daemon.token }, { count: CONTROL_TRIES_MIN, random });
    const deviation = deviations(careless[0], careless[SHARES.length - 1]);
    check(deviation > DEVIATIONS_MAX, `a careless server differs by ${deviation.toFixed(1)} deviations only`);
    tally.note(`a server that compares letter by letter differs by ${deviation.toFixed(1)}`);
  } finally {
    server.close();
  }
  return tally.outcome();
}

export const timingRows: readonly Row[] = [
  {
    name: 'R31t',
    title: 'the time of a refusal does not tell how much of a wrong token is right',
    tries: 20_000,
    short: 500,
    run: tokenTiming,
  },
];
