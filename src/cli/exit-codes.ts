// The exit codes of the CLI, and the one mapping from errors to exit codes and lines. A command throws an error or sets its exit
// code, and only main.ts exits.

import { CommanderError } from 'commander';
import { GptdError, RPC_ERROR } from '../daemon/protocol/errors.ts';
import { ClientFault, RpcFault, type ClientProblem } from './client/faults.ts';

export const EXIT = {
  ok: 0,
  jobFailed: 1,
  usage: 2,
  noDaemon: 69,
  dataDirInUse: 75,
  unsafeConfiguration: 78,
  cancelled: 130,
} as const;

/** A fault with an exit code of its own and one sentence for the user. */
export class CliError extends Error {
  readonly exitCode: number;

  constructor(exitCode: number, message: string, options?: ErrorOptions) {
    super(message, options);
    this.name = 'CliError';
    this.exitCode = exitCode;
  }
}

/** Returns the error for a mistake in how the command was called. */
export const usageError = (message: string): CliError => new CliError(EXIT.usage, message);

const CLIENT_EXITS: Readonly<Record<ClientProblem, number>> = {
  no_daemon: EXIT.noDaemon,
  refused: EXIT.jobFailed,
  failed: EXIT.jobFailed,
  too_long: EXIT.usage,
};

export function exitCodeOf(error: unknown): number {
  if (error instanceof CliError) return error.exitCode;
  if (error instanceof ClientFault) return CLIENT_EXITS[error.problem];
  if (error instanceof RpcFault) {
    return error.code === RPC_ERROR.invalidParams || error.reason === 'invalid_spec' ? EXIT.usage : EXIT.jobFailed;
  }
  // Help and --version end parsing with exit code 0; everything else that commander throws is a usage error.
  if (error instanceof CommanderError) return error.exitCode === 0 ? EXIT.ok : EXIT.usage;
  if (error instanceof GptdError) return error.code === 'invalid_spec' ? EXIT.usage : EXIT.jobFailed;
  return EXIT.jobFailed;
}

/** Returns `gptd: <sentence>` on one line. */
export function errorLine(error: unknown): string {
  const message = error instanceof Error ? error.message : String(error);
  const sentence = message
    .replace(/^error: /, '')
    .replace(/\s*\n\s*/g, ' ')
    .trim();
  return `gptd: ${sentence}`;
}
