// A stranger's process, in a network of its own. It makes the requests that stdin lists, and prints the status of each reply.

import http from 'node:http';
import { text } from 'node:stream/consumers';

const AT_ONCE = 32;
const TIMEOUT_MS = 20_000;

const { host, port, guesses } = JSON.parse(await text(process.stdin));
const agent = new http.Agent({ maxSockets: AT_ONCE });

/** @param {{ path: string, headers: Record<string, string> }} guess */
function ask({ path, headers }) {
  return new Promise((resolve, reject) => {
    const request = http.get({ host, port, path, headers, agent, timeout: TIMEOUT_MS });
    request.on('upgrade', (response, socket) => {
      socket.destroy();
      resolve(response.statusCode);
    });
    request.on('response', (response) => {
      response.resume();
      response.on('end', () => resolve(response.statusCode));
    });
    request.on('timeout', () => request.destroy(new Error(`no answer within ${TIMEOUT_MS} ms`)));
    request.on('error', reject);
  });
}

process.stdout.write(JSON.stringify(await Promise.all(guesses.map(ask))));
