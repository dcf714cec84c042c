// What can go wrong between a client and the daemon, as errors that say what happened. What a program makes of them, such as
// an exit code, is the program's own matter.

/**
 * `no_daemon`: none answers. `refused`: it does not take the connection or the file. `failed`: a transfer broke off, or what the
 * daemon sent is not what it should be. `too_long`: the daemon would not take the request, which was not sent.
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

/** The daemon's answer to a request was an error. `code` is JSON-RPC's, `reason` one of the contract's closed union. */
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
