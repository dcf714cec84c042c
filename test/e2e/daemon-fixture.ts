// Runs a daemon as its users do: the built command in a process and a data directory of its own, reached through the command line
// or through literal frames on its WebSocket. A test can kill the daemon and start it again over the same data.

import { mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import path from 'node:path';
import { WebSocket } from 'ws';
import type { DaemonFile } from '../../src/daemon/protocol/daemon.ts';
import type { GenerateResult } from '../../src/daemon/protocol/generation.ts';
import type { JobEvent } from '../../src/daemon/protocol/jobs.ts';
import type { JobEventNotification, RpcResponse } from '../../src/daemon/protocol/methods.ts';
import type { RpcError } from '../../src/daemon/protocol/errors.ts';
import type { TrainResult } from '../../src/daemon/protocol/training.ts';
import { startCli, type CliRun, type RunningCli } from '../cli/run-cli.ts';

/** The engine of daemons whose test does not choose one. Every promise holds for each engine. */
const ENGINE = ['--engine', process.env['GPTD_TEST_ENGINE'] ?? 'auto'];

export interface Daemon {
  readonly url: string;
  readonly pid: number;
  readonly token: string;
  readonly process: RunningCli;
}

export interface StartOptions {
  readonly workers?: number;
  readonly flags?: readonly string[];
  readonly env?: Readonly<Record<string, string>>;
  /** A command that the daemon runs under, such as `['prlimit', '--nofile=64']`. */
  readonly under?: readonly string[];
  /** Whether the daemon may end with an error, because the test causes faults. */
  readonly mayFail?: boolean;
}

/**
 * A data directory, the daemon that runs in it, and the commands that talk to the daemon. `close()` ends the processes and
 * removes the directory. When a daemon has failed after it was ready, `close()` throws an error with the daemon's output.
 */
export class DataHome {
  readonly dir = mkdtempSync(path.join(tmpdir(), 'gptd-e2e-'));
  readonly #commands = new Set<RunningCli>();
  #daemon: Daemon | undefined;
  #failure: Error | undefined;

  get daemon(): Daemon {
    if (this.#daemon === undefined) throw new Error('no daemon was started');
    return this.#daemon;
  }

  /** Starts the daemon, and resolves when it has printed that it is ready. */
  async start({ workers = 1, flags = [], mayFail = false, ...how }: StartOptions = {}): Promise<Daemon> {
    const process = this.run(['start', '--port', '0', '--workers', String(workers), ...ENGINE, ...flags], how);
    await process.said('is ready at');
    const { url, pid } = JSON.parse(this.read('daemon.json')) as DaemonFile;
    this.#daemon = { url, pid, token: this.read('token').trim(), process };
    void process.ended.then(({ exitCode, stderr }) => {
      // A second signal ends the daemon with 130.
      if (!mayFail && exitCode !== 0 && exitCode !== null && exitCode !== 130)
        this.#failure = new Error(`A daemon ended with ${exitCode}: ${stderr}`);
    });
    return this.#daemon;
  }

  /** Sends the daemon a signal. Resolves to the daemon's exit code, or to null when the signal itself ended the daemon. */
  async signal(signal: 'SIGKILL' | 'SIGTERM' | 'SIGINT'): Promise<number | null> {
    const { pid, process: running } = this.daemon;
    process.kill(pid, signal);
    return (await running.ended).exitCode;
  }

  async restart(signal: 'SIGKILL' | 'SIGTERM', options: StartOptions): Promise<Daemon> {
    await this.signal(signal);
    return await this.start(options);
  }

  /** Starts a command in this data directory. */
  run(args: readonly string[], { env, under }: Pick<StartOptions, 'env' | 'under'> = {}): RunningCli {
    const running = startCli([...args, '--data-dir', this.dir], env, under === undefined ? {} : { under });
    this.#commands.add(running);
    void running.ended.then(() => this.#commands.delete(running));
    return running;
  }

  cli(args: readonly string[]): Promise<CliRun> {
    return this.run(args).ended;
  }

  /** Runs a command that has to succeed. Resolves to the JSON document that it prints. */
  async json<T>(args: readonly string[]): Promise<T> {
    return JSON.parse(succeeded(await this.cli([...args, '--json']), args).stdout) as T;
  }

  /** Runs a command that has to succeed. Resolves to the events that it prints. */
  async events(args: readonly string[]): Promise<JobEvent[]> {
    return parseEvents(succeeded(await this.cli([...args, '--json']), args).stdout);
  }

  /** Writes a file beside the daemon's own files, and returns its path. */
  write(name: string, content: string | Uint8Array): string {
    const file = path.join(this.dir, name);
    writeFileSync(file, content);
    return file;
  }

  read(name: string): string {
    return readFileSync(path.join(this.dir, name), 'utf8');
  }

  async connect(): Promise<RawClient> {
    return await RawClient.connect(this.daemon);
  }

  async close(): Promise<void> {
    const running = [...this.#commands];
    // A daemon that runs under another command does not die with it.
    if (this.#daemon !== undefined && this.#commands.has(this.#daemon.process)) killIfThere(this.#daemon.pid);
    for (const { child } of running) child.kill('SIGKILL');
    await Promise.all(running.map(({ ended }) => ended));
    rmSync(this.dir, { recursive: true, force: true, maxRetries: 5 });
    if (this.#failure !== undefined) throw this.#failure;
  }
}

/** Resolves to a data directory whose daemon runs. */
export async function startedHome(options: StartOptions = {}): Promise<DataHome> {
  const home = new DataHome();
  try {
    await home.start(options);
  } catch (error) {
    await home.close();
    throw error;
  }
  return home;
}

function killIfThere(pid: number): void {
  try {
    process.kill(pid, 'SIGKILL');
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'ESRCH') throw error;
  }
}

function succeeded(run: CliRun, args: readonly string[]): CliRun {
  if (run.exitCode !== 0) throw new Error(`gptd ${args.join(' ')} ended with ${String(run.exitCode)}: ${run.stderr}`);
  return run;
}

export const parseEvents = (stdout: string): JobEvent[] =>
  stdout
    .split('\n')
    .filter((line) => line !== '')
    .map((line) => JSON.parse(line) as JobEvent);

type EventOf<T extends JobEvent['type']> = Extract<JobEvent, { type: T }>;

export const ofType = <T extends JobEvent['type']>(events: readonly JobEvent[], type: T): EventOf<T>[] =>
  events.filter((event) => event.type === type) as EventOf<T>[];

/** Returns the result of the training whose events these are; `generateResult` does so for a generation. */
export const trainResult = (events: readonly JobEvent[]): TrainResult => resultOf(events) as TrainResult;
export const generateResult = (events: readonly JobEvent[]): GenerateResult => resultOf(events) as GenerateResult;

function resultOf(events: readonly JobEvent[]): unknown {
  const last = events.at(-1);
  if (last?.type !== 'succeeded') throw new Error(`the job ended with ${JSON.stringify(last)}`);
  return last.data.result;
}

/** Turns `{"vocab_size": 256}` into `--vocab-size 256`. */
export const flagsOf = (values: Readonly<Record<string, string | number | boolean>>): string[] =>
  Object.entries(values).flatMap(([name, value]) => {
    const flag = `--${name.replaceAll('_', '-')}`;
    if (typeof value === 'boolean') return value ? [flag] : [];
    return [flag, String(value)];
  });

/** An error that the daemon has answered with. */
export class RpcRefusal extends Error {
  readonly code: number;
  readonly data: RpcError['data'];

  constructor({ code, message, data }: RpcError) {
    super(message);
    this.code = code;
    this.data = data;
  }
}

interface Waiter {
  readonly wanted: (event: JobEvent) => boolean;
  readonly resolve: (event: JobEvent) => void;
  readonly reject: (error: Error) => void;
}

/** A client that shares no code with gptd: it speaks JSON-RPC over a bare socket, and keeps every event as it came. */
export class RawClient {
  /** Holds every notification, in the order of arrival. */
  readonly events: JobEvent[] = [];
  readonly closed: Promise<number>;
  readonly socket: WebSocket;
  readonly #answers = new Map<number, (response: RpcResponse) => void>();
  readonly #frames: ((text: string) => void)[] = [];
  readonly #waiters = new Set<Waiter>();
  #lastId = 0;

  private constructor(socket: WebSocket) {
    this.socket = socket;
    socket.on('message', (data) => this.#receive((data as Buffer).toString('utf8')));
    socket.on('error', () => undefined);
    this.closed = new Promise((resolve) => {
      socket.once('close', (code) => {
        for (const { reject } of this.#waiters) reject(new Error(`the connection was lost: ${code}`));
        resolve(code);
      });
    });
  }

  static async connect({ url, token }: { readonly url: string; readonly token: string }): Promise<RawClient> {
    const socket = new WebSocket(`${url.replace('http', 'ws')}/v1/ws`, 'gptd.v1', {
      headers: { authorization: `Bearer ${token}` },
    });
    const client = new RawClient(socket);
    await new Promise((resolve, reject) => socket.once('open', resolve).once('error', reject));
    return client;
  }

  /** Sends a frame as it is. Resolves to the next frame that is no event and answers no `request`. */
  async exchange(frame: string): Promise<RpcResponse> {
    const answer = new Promise<string>((resolve) => this.#frames.push(resolve));
    this.socket.send(frame);
    return JSON.parse(await answer) as RpcResponse;
  }

  /** Resolves to the result. Rejects with `RpcRefusal` when the reply is an error. */
  async request<T = unknown>(method: string, params: object = {}): Promise<T> {
    const id = ++this.#lastId;
    const response = await new Promise<RpcResponse>((resolve, reject) => {
      this.#answers.set(id, resolve);
      void this.closed.then((code) => reject(new Error(`the connection was lost: ${code}`)));
      this.socket.send(JSON.stringify({ jsonrpc: '2.0', id, method, params }));
    });
    if ('error' in response) throw new RpcRefusal(response.error);
    return response.result as T;
  }

  async submit(kind: string, spec: object, key?: string): Promise<string> {
    const params = { kind, spec, ...(key === undefined ? {} : { key }) };
    return (await this.request<{ jobId: string }>('job.submit', params)).jobId;
  }

  async subscribe(jobId: string, after = 0): Promise<void> {
    await this.request('job.subscribe', { jobId, after });
  }

  /** Resolves to the first event, past or to come, that is wanted. */
  async until(wanted: (event: JobEvent) => boolean): Promise<JobEvent> {
    const known = this.events.find(wanted);
    if (known !== undefined) return known;
    return await new Promise((resolve, reject) => this.#waiters.add({ wanted, resolve, reject }));
  }

  untilStep(jobId: string, step: number): Promise<JobEvent> {
    return this.until((event) => event.jobId === jobId && event.type === 'step' && event.data.step >= step);
  }

  /** Resolves to the event that ends the job. */
  untilEnd(jobId: string): Promise<JobEvent> {
    return this.until((event) => event.jobId === jobId && ['succeeded', 'failed', 'cancelled'].includes(event.type));
  }

  /** Submits a job and follows it to its end. Resolves to its events. */
  async follow(kind: string, spec: object): Promise<JobEvent[]> {
    const jobId = await this.submit(kind, spec);
    await this.subscribe(jobId);
    await this.untilEnd(jobId);
    return this.events.filter((event) => event.jobId === jobId);
  }

  close(): void {
    this.socket.terminate();
  }

  #receive(text: string): void {
    const message = JSON.parse(text) as RpcResponse | JobEventNotification;
    if ('method' in message) {
      this.events.push(message.params);
      for (const waiter of this.#waiters) {
        if (!waiter.wanted(message.params)) continue;
        this.#waiters.delete(waiter);
        waiter.resolve(message.params);
      }
      return;
    }
    const answered = typeof message.id === 'number' ? this.#answers.get(message.id) : undefined;
    if (answered === undefined) this.#frames.shift()?.(text);
    else answered(message);
  }
}
