// Where a daemon listens, and what it means to the user when a daemon refuses a connection.

import { ClientFault } from './faults.ts';

/** The address of a daemon. `url` is `http://host:port` without a trailing slash. */
export interface Address {
  readonly url: string;
  readonly token: string | undefined;
}

export function noDaemonAt(url: string, cause?: unknown): ClientFault {
  return new ClientFault('no_daemon', `No daemon answers at ${url}: start one with "gptd start".`, { cause });
}

/** Returns what an HTTP status other than success means to the user. */
export function refusal(address: Address, status: number): ClientFault {
  if (status === 401) {
    const problem = address.token === undefined ? 'needs a token' : 'refused the token';
    return new ClientFault(
      'refused',
      `The daemon at ${address.url} ${problem}: give the one in its data directory with --token or GPTD_TOKEN.`,
    );
  }
  if (status === 403) {
    return new ClientFault(
      'refused',
      `The daemon at ${address.url} refused the host name in that address: use the address that it is bound to.`,
    );
  }
  if (status === 503) return noDaemonAt(address.url);
  return new ClientFault('refused', `The daemon at ${address.url} refused the connection with HTTP status ${status}.`);
}
