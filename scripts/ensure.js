// Makes a fresh clone runnable: checks Node, installs what package-lock.json asks for and builds what is missing or stale.
// It runs before anything is installed, so it uses nothing but Node itself.

import { spawnSync } from 'node:child_process';
import { readdirSync, statSync, utimesSync } from 'node:fs';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

const NODE_MIN = [20, 19];
const ROOT = dirname(dirname(fileURLToPath(import.meta.url)));
const LOCK_FILE = join(ROOT, 'package-lock.json');
/** npm writes this file when an installation is complete. */
const INSTALLED_FILE = join(ROOT, 'node_modules', '.package-lock.json');
const BUILT_FILE = join(ROOT, 'dist', 'cli', 'main.js');
/** The compiler's own record of the last build. */
const BUILD_STAMP = join(ROOT, 'dist', '.tsbuildinfo');

/** Throws an Error with one sentence for the user when Node is too old or a step fails. */
export function ensure() {
  checkNode();
  if (modifiedMs(INSTALLED_FILE) < modifiedMs(LOCK_FILE)) {
    npm(['ci', '--no-progress', '--loglevel=error'], 'Installing the dependencies');
  }
  const sourcesMs = Math.max(newestMs(join(ROOT, 'src')), modifiedMs(join(ROOT, 'tsconfig.build.json')));
  if (modifiedMs(BUILT_FILE) === 0 || modifiedMs(BUILD_STAMP) < sourcesMs) {
    npm(['run', '--silent', 'build'], 'Building');
    // The compiler does not touch its record when a newer file has the same text as before.
    const now = new Date();
    if (modifiedMs(BUILD_STAMP) > 0) utimesSync(BUILD_STAMP, now, now);
  }
}

function checkNode() {
  const [major = 0, minor = 0] = process.versions.node.split('.').map(Number);
  if (major < NODE_MIN[0] || (major === NODE_MIN[0] && minor < NODE_MIN[1])) {
    throw new Error(
      `gptd needs Node ${NODE_MIN.join('.')} or newer, and this is ${process.version}: install one from https://nodejs.org.`,
    );
  }
}

/**
 * @param {readonly string[]} args
 * @param {string} what
 */
function npm(args, what) {
  console.error(`${what} (npm ${args.join(' ')}) ...`);
  // Under `npm run`, the variable names the npm that runs. On Windows `npm` is a script that only a shell can start.
  const script = process.env['npm_execpath'];
  const options = /** @type {const} */ ({ cwd: ROOT, stdio: 'inherit' });
  const { status, error } =
    script !== undefined && /\.c?js$/.test(script)
      ? spawnSync(process.execPath, [script, ...args], options)
      : spawnSync('npm', [...args], { ...options, shell: process.platform === 'win32' });
  if (error !== undefined) throw new Error(`npm could not be started: ${error.message}.`);
  if (status !== 0) throw new Error(`${what} failed: "npm ${args.join(' ')}" ended with exit code ${status}.`);
}

/**
 * Returns 0 for a file that is not there.
 * @param {string} file
 */
function modifiedMs(file) {
  return statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0;
}

/**
 * Returns the time of the newest file under a folder.
 * @param {string} folder
 * @returns {number}
 */
function newestMs(folder) {
  return readdirSync(folder, { withFileTypes: true }).reduce((newest, entry) => {
    const path = join(folder, entry.name);
    return Math.max(newest, entry.isDirectory() ? newestMs(path) : modifiedMs(path));
  }, 0);
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  try {
    ensure();
  } catch (error) {
    console.error(/** @type {Error} */ (error).message);
    process.exitCode = 1;
  }
}
