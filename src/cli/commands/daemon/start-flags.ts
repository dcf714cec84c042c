// The flags of `gptd start`, and what starting in the foreground and in the background share: the arguments that start the same
// daemon, and the line that says where it listens.

import { Option, type Command } from 'commander';
import {
  KEEP_JOBS_DEFAULT,
  KEEP_JOBS_MAX,
  LOG_LEVELS,
  QUEUE_LIMIT_DEFAULT,
  QUEUE_LIMIT_MAX,
  WORKERS_MAX,
  type DaemonOptions,
} from '../../../daemon/options.ts';
import { DEFAULT_HOST, DEFAULT_PORT, type DaemonFile } from '../../../daemon/protocol/daemon.ts';
import { printJson, printText, type CliContext } from '../../context.ts';
import { collect, integerBetween, type ConnectionFlags } from '../../flags.ts';

const PORT_MAX = 65535;

export interface StartFlags extends ConnectionFlags {
  readonly host: string;
  readonly port: number;
  readonly workers?: number;
  readonly engine: DaemonOptions['engine'];
  readonly queueLimit: number;
  readonly keepJobs: number;
  readonly logLevel: DaemonOptions['logLevel'];
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
    .addOption(new Option('--engine <name>', 'what computes').choices(['auto', 'onnx', 'tensorflow']).default('auto'))
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
