// What a command gets from main.ts: the environment, the two output streams, and a place for its exit code. Commands read
// neither process.env nor argv, so a test can run them with any environment and streams.

export interface OutputStream {
  readonly isTTY?: boolean | undefined;
  readonly columns?: number | undefined;
  write(text: string): boolean;
}

export interface CliContext {
  readonly env: Readonly<Record<string, string | undefined>>;
  /** This program's own file, which `start --detach` runs again. */
  readonly mainFile: string;
  readonly stdout: OutputStream;
  readonly stderr: OutputStream;
  /** The command that ran sets its exit code here. */
  exitCode: number;
  /** Whether the process goes on when the reader of its output leaves, as `| head` does. Only a daemon in the foreground does. */
  survivesBrokenPipe: boolean;
}

/** Writes one JSON document to stdout. */
export function printJson(context: CliContext, value: unknown): void {
  context.stdout.write(`${JSON.stringify(value)}\n`);
}

/** Writes one line or several to stdout. */
export function printText(context: CliContext, text: string): void {
  context.stdout.write(`${text}\n`);
}
