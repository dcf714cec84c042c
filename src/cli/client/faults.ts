// What can go wrong between a client and the daemon, as errors that say what happened. The program that uses the client decides
// what follows from an error, such as an exit code.

/**
 * `no_daemon`: no daemon answers. `refused`: the daemon does not take the connection or the file. `failed`: a transfer broke off,
 * or the daemon sent something wrong. `too_long`: the request was not sent, because the daemon would not take it.
 */
export type ClientProblem = 'no_daemon' | 'refused' | 'failed' | 'too_long';

export class ClientFault extends Error {
  readonly problem: ClientProblem;

  constructor(problem: ClientProblem, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'ClientFault';
    this.problem = problem;
  }
}

/** The daemon replied to a request with an error. `code` is JSON-RPC's, and `reason` is a code of the contract's closed union. */
export class RpcFault extends Error {
  readonly code: number;
  readonly reason: string | undefined;

  constructor(message: string, fault: { readonly code: number; readonly reason?: string | undefined }) {
    super(message);
    this.name = 'RpcFault';
    this.code = fault.code;
    this.reason = fault.reason;
  }
}

/** The socket closed while something was waiting for it. */
export class ConnectionLost extends Error {
  constructor(message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'ConnectionLost';
  }
}
