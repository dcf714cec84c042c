// Opens a connection from Node.js. The socket comes from the `ws` package, which can send the token as a header and tells why a
// handshake was refused.

import { WebSocket } from 'ws';
import { SUBPROTOCOL, WEBSOCKET_PATH } from '../../daemon/protocol/daemon.ts';
import { noDaemonAt, refusal, type Address } from './address.ts';
import { Client } from './client.ts';

const HANDSHAKE_TIMEOUT_MS = 10_000;

/** Resolves once the daemon has accepted the connection. Throws `no_daemon` when none answers, and `refused` when it refuses. */
export async function connect(address: Address): Promise<Client> {
  const socket = new WebSocket(`${address.url.replace(/^http/, 'ws')}${WEBSOCKET_PATH}`, SUBPROTOCOL, {
    headers: address.token === undefined ? {} : { authorization: `Bearer ${address.token}` },
    perMessageDeflate: false,
    handshakeTimeout: HANDSHAKE_TIMEOUT_MS,
  });
  await new Promise<void>((resolve, reject) => {
    socket.once('open', resolve);
    socket.once('unexpected-response', (request, response) => {
      request.destroy();
      reject(refusal(address, response.statusCode ?? 0));
    });
    // Nobody answered the handshake, or something answered that is not gptd. The listener stays, because an `error` event without
    // a listener would end the process. A `close` event follows each error.
    socket.on('error', (cause) => reject(noDaemonAt(address.url, cause)));
  });
  return new Client(socket, address);
}
