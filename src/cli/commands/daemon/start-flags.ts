// The flags of `gptd start`, and what starting in the foreground and in the background share: the arguments that start the same
// daemon, and the line that says where it listens.

import { availableParallelism } from 'node:os';
import { Option, type Command } from 'commander';
import { DEFAULT_HOST, DEFAULT_PORT, type DaemonFile } from '../../../daemon/protocol/daemon.ts';
import { printJson, printText, type CliContext } from '../../context.ts';
import { collect, integerBetween, type ConnectionFlags } from '../../flags.ts';

const PORT_MAX = 65535;
/** The largest number of worker threads of one daemon. The default is one for each core. */
const WORKERS_MAX = 64;
const QUEUE_LIMIT_DEFAULT = 100;
const QUEUE_LIMIT_MAX = 1e6;
const KEEP_JOBS_DEFAULT = 10_000;
const KEEP_JOBS_MAX = 1e9;
const ENGINES = ['auto', 'onnx', 'tensorflow'] as const;
const LOG_LEVELS = ['trace', 'debug', 'info', 'warn', 'error', 'silent'] as const;

export interface StartFlags extends ConnectionFlags {
  readonly host: string;
  readonly port: number;
  readonly workers?: number;
  readonly engine: (typeof ENGINES)[number];
  readonly queueLimit: number;
  readonly keepJobs: number;
  readonly logLevel: (typeof LOG_LEVELS)[number];
  readonly allowOrigin?: readonly string[];
  readonly detach?: boolean;
}

export function addStartFlags(command: Command): Command {
  return command
    .option('--host <host>', 'address to listen on', DEFAULT_HOST)
    .option('--port <port>', 'port to listen on, 0 for a free one', integerBetween(0, PORT_MAX), DEFAULT_PORT)
    .option(
      '--workers <count>',
      'worker threads (default: as many as suit this machine)',
      integerBetween(1, WORKERS_MAX),
    )
    .addOption(new Option('--engine <name>', 'what computes').choices(ENGINES).default('auto'))
    .option('--queue-limit <count>', 'jobs that may wait', integerBetween(1, QUEUE_LIMIT_MAX), QUEUE_LIMIT_DEFAULT)
    .option(
      '--keep-jobs <count>',
      'ended jobs to keep, besides those whose checkpoints are there',
      integerBetween(1, KEEP_JOBS_MAX),
      KEEP_JOBS_DEFAULT,
    )
    .addOption(
      new Option('--log-level <level>', 'least level of what is logged on stderr').choices(LOG_LEVELS).default('info'),
    )
    .option('--allow-origin <origin>', 'accept this browser origin too; may be repeated', collect)
    .option('--detach', 'leave the daemon running in the background');
}

/** Returns the number of worker threads when the user names none. */
export const defaultWorkers = (): number => Math.min(WORKERS_MAX, availableParallelism());

/** Returns the arguments that start the same daemon. The token is not among them, because other users could read it there. */
export function startArguments(flags: StartFlags, dataDir: string): string[] {
  return [
    'start',
    '--data-dir',
    dataDir,
    '--host',
    flags.host,
    '--port',
    String(flags.port),
    '--engine',
    flags.engine,
    '--queue-limit',
    String(flags.queueLimit),
    '--keep-jobs',
    String(flags.keepJobs),
    '--log-level',
    flags.logLevel,
    ...(flags.workers === undefined ? [] : ['--workers', String(flags.workers)]),
    ...(flags.allowOrigin ?? []).flatMap((origin) => ['--allow-origin', origin]),
  ];
}

export function announceReady(
  ready: DaemonFile,
  { json, context }: { readonly json: boolean; readonly context: CliContext },
): void {
  if (json) printJson(context, { url: ready.url, pid: ready.pid, version: ready.version });
  else printText(context, `gptd ${ready.version} is ready at ${ready.url} (pid ${ready.pid})`);
}
