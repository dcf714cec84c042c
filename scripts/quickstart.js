// `npm run quickstart` goes from a fresh clone to a GPT that was trained on this machine. It runs the built command as a user
// would, and prints every command before it runs. Everything happens in a temporary directory that is removed at the end.
// `--engine tensorflow` uses the other engine, and a smaller model because that engine is slower.

import { spawn } from 'node:child_process';
import { existsSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { dirname, join } from 'node:path';
import { setTimeout as delay } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import { parseArgs } from 'node:util';
import { ensure } from './ensure.js';

const { engine } = parseArgs({ options: { engine: { type: 'string', default: 'auto' } } }).values;
const SIZE =
  engine === 'tensorflow'
    ? { context: 128, width: 96, layers: 2, steps: 400, tokens: 120 }
    : { context: 208, width: 128, layers: 3, steps: 600, tokens: 200 };

// This byte-level GPT learns words in about 90 seconds on two cores. The context holds the prompt and what follows it.
const MODEL = 'ishmael';
const MODEL_FLAGS = [
  ...['--vocab-size', '256', '--context-length', String(SIZE.context)],
  ...['--emb-dim', String(SIZE.width), '--n-layers', String(SIZE.layers)],
  '--n-heads',
  '2',
  '--drop-rate',
  '0',
  '--tie-weights',
  '--tokenizer',
  'byte',
  '--init',
  'gpt2',
];
const TRAIN_FLAGS = {
  steps: SIZE.steps,
  'batch-size': 10,
  lr: 3e-3,
  'warmup-steps': 30,
  beta2: 0.99,
  'eval-every': 100,
};
const PROMPT = 'Call me ';
const GENERATE_FLAGS = { 'max-tokens': SIZE.tokens, temperature: 0.8, 'top-k': 40 };

const START_MS_MAX = 60_000;
const STOP_MS_MAX = 20_000;
const POLL_MS = 50;
const EXIT_CANCELLED = 130;

const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
const CLI = join(ROOT, 'dist', 'cli', 'main.js');
const BOOK = join(ROOT, 'node_modules', '@stdlib', 'datasets-moby-dick', 'data');

/** @typedef {import('node:child_process').ChildProcess} ChildProcess */

/** The folder and the processes that must be removed and ended, however the quickstart ends. */
const owned = {
  /** @type {string | undefined} */
  folder: undefined,
  /** @type {ChildProcess | undefined} */
  daemon: undefined,
  /** @type {ChildProcess | undefined} */
  command: undefined,
};
let isInterrupted = false;

async function quickstart() {
  ensure();
  const folder = mkdtempSync(join(tmpdir(), 'gptd-quickstart-'));
  owned.folder = folder;
  const book = join(folder, 'moby-dick.txt');
  writeBook(book);

  say('A daemon on a free port, with its data in a temporary directory.');
  await startDaemon();

  say('The parameters of GPT-2 small, as the book counts them.');
  await gptd(['params', '--config', 'GPT_CONFIG_124M']);

  say('A small model that reads bytes.');
  await gptd(['create', MODEL, ...MODEL_FLAGS]);

  say('Trained on Moby-Dick.');
  await gptd(['train', MODEL, '--data', book, ...words(TRAIN_FLAGS)]);

  say('What it has learned.');
  await gptd(['generate', MODEL, '--prompt', PROMPT, ...words(GENERATE_FLAGS)]);

  say('To go on with a daemon that stays and data of your own:');
  console.log(
    [
      '  alias gptd="node dist/cli/main.js"',
      '  gptd start --detach',
      `  gptd create mine ${MODEL_FLAGS.join(' ')}`,
      `  gptd train mine --data your.txt ${words(TRAIN_FLAGS).join(' ')}`,
      '  gptd generate mine --prompt "Once upon a time" --temperature 0.8',
      '  gptd stop',
    ].join('\n'),
  );
}

/** @param {string} sentence */
function say(sentence) {
  console.log(`\n# ${sentence}`);
}

/** @param {Readonly<Record<string, number | string>>} flags */
function words(flags) {
  return Object.entries(flags).flatMap(([name, value]) => [`--${name}`, String(value)]);
}

/**
 * Writes the book's chapters in order, as one text.
 * @param {string} file
 */
function writeBook(file) {
  if (!existsSync(BOOK))
    throw new Error('The text of Moby-Dick is not installed: run "npm ci" without leaving out development packages.');
  /** @type {string[]} */
  const parts = JSON.parse(readFileSync(join(BOOK, 'file_list.json'), 'utf8'));
  writeFileSync(file, parts.map((part) => readFileSync(join(BOOK, part), 'utf8').trim()).join('\n\n'));
}

/**
 * Prints the command line as a user would type it, and starts it.
 * @param {readonly string[]} args
 */
function startGptd(args) {
  const shown = args.map((arg) => (/^[\w@%+=:,./-]+$/.test(arg) ? arg : `"${arg}"`));
  console.log(`$ gptd ${shown.join(' ')}`);
  // The temporary folder is the data directory; the address or token of another daemon must not be used.
  const { GPTD_URL, GPTD_TOKEN, ...rest } = process.env;
  void [GPTD_URL, GPTD_TOKEN];
  return spawn(process.execPath, [CLI, ...args], {
    env: { ...rest, GPTD_HOME: owned.folder },
    stdio: ['ignore', 'inherit', 'inherit'],
    // Ctrl-C in a terminal reaches this process only, which then ends the others one by one.
    detached: true,
  });
}

async function startDaemon() {
  const daemon = startGptd(['start', '--port', '0', '--engine', engine, '--log-level', 'warn']);
  owned.daemon = daemon;
  const deadlineMs = performance.now() + START_MS_MAX;
  while (!existsSync(join(owned.folder ?? '', 'daemon.json'))) {
    if (hasEnded(daemon)) throw new Error(`The daemon ended with exit code ${daemon.exitCode}.`);
    if (performance.now() > deadlineMs) throw new Error(`The daemon was not ready within ${START_MS_MAX / 1000} s.`);
    if (isInterrupted) throw new Error('Interrupted.');
    await delay(POLL_MS);
  }
}

/** @param {readonly string[]} args */
async function gptd(args) {
  if (isInterrupted) throw new Error('Interrupted.');
  const command = startGptd(args);
  owned.command = command;
  const exitCode = await ended(command);
  owned.command = undefined;
  if (exitCode !== 0) throw new Error(`"gptd ${args[0]}" ended with exit code ${exitCode}.`);
}

/** @param {ChildProcess} child */
function hasEnded(child) {
  return child.exitCode !== null || child.signalCode !== null;
}

/**
 * Resolves to the exit code, or to the signal that ended the process.
 * @param {ChildProcess} child
 * @returns {Promise<number | string>}
 */
function ended(child) {
  return new Promise((resolve, reject) => {
    child.once('error', reject);
    child.once('exit', (code, signal) => resolve(code ?? signal ?? 'unknown'));
  });
}

/**
 * Sends `signal` to the process, and kills the process after STOP_MS_MAX.
 * @param {ChildProcess | undefined} child
 * @param {'SIGINT' | 'SIGTERM'} signal
 */
async function end(child, signal) {
  if (child === undefined || hasEnded(child)) return;
  const gone = ended(child);
  child.kill(signal);
  const insist = setTimeout(() => child.kill('SIGKILL'), STOP_MS_MAX);
  await gone;
  clearTimeout(insist);
}

async function cleanUp() {
  await end(owned.command, 'SIGINT');
  await end(owned.daemon, 'SIGTERM');
  if (owned.folder !== undefined) rmSync(owned.folder, { recursive: true, force: true, maxRetries: 5 });
}

for (const signal of /** @type {const} */ (['SIGINT', 'SIGTERM'])) {
  process.on(signal, () => {
    if (isInterrupted) return;
    isInterrupted = true;
    console.error('\nStopping: the daemon ends and its temporary directory is removed.');
    // The running command ends first. Then quickstart() fails at its next step, and the code below cleans everything up.
    void end(owned.command, 'SIGINT');
  });
}

try {
  await quickstart();
} catch (error) {
  if (!isInterrupted) console.error(`quickstart: ${/** @type {Error} */ (error).message}`);
  process.exitCode = isInterrupted ? EXIT_CANCELLED : 1;
} finally {
  await cleanUp();
}
