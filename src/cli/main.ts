#!/usr/bin/env node
// The `gptd` command. Only this file reads argv and the environment, prints what went wrong, and exits.

import { CommanderError } from 'commander';
import type { CliContext } from './context.ts';
import { errorLine, EXIT, exitCodeOf } from './exit-codes.ts';
import { buildProgram } from './program.ts';

// ONNX Runtime reports its use to its maker unless this is set before it loads. What runs here is nobody's business.
process.env['ORT_DISABLE_TELEMETRY'] ??= '1';

const context: CliContext = {
  env: process.env,
  mainFile: process.argv[1],
  stdout: process.stdout,
  stderr: process.stderr,
  exitCode: EXIT.ok,
  survivesBrokenPipe: false,
};

/** Ends the process when the reader of its output has seen enough, as `| head` has, because that is not an error. */
function onStreamError(error: NodeJS.ErrnoException): void {
  if (error.code !== 'EPIPE') throw error;
  if (!context.survivesBrokenPipe) process.exit(context.exitCode);
}

/** Resolves when the written text has left the process, which on a pipe may be later than the write. */
const drained = (stream: NodeJS.WriteStream): Promise<void> =>
  new Promise((resolve) => stream.write('', () => resolve()));

/** Whether commander has already printed the text: help, the version, or the help that bare `gptd` gets as its error. */
const isPrinted = (error: unknown): boolean =>
  error instanceof CommanderError && (error.exitCode === 0 || error.code === 'commander.help');

async function main(): Promise<number> {
  process.stdout.on('error', onStreamError);
  process.stderr.on('error', onStreamError);
  try {
    await buildProgram(context).parseAsync(process.argv);
    return context.exitCode;
  } catch (error) {
    if (!isPrinted(error)) process.stderr.write(`${errorLine(error)}\n`);
    return exitCodeOf(error);
  }
}

const exitCode = await main();
await Promise.all([drained(process.stdout), drained(process.stderr)]);
process.exit(exitCode);
