// Runs the chaos suite, which attacks every promise of durability, security and streaming at its full count, on the built daemon.
//   npm run test:chaos -- --help
// The rows are TypeScript. Vite, which also loads the other tests, compiles them when they are loaded.

import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { runnerImport } from 'vite';
import { ensure } from '../../scripts/ensure.js';

ensure();
const suite = fileURLToPath(new URL('suite.ts', import.meta.url));
const { module } = await runnerImport(suite, { configFile: false, logLevel: 'error' });
process.exitCode = await module.main(process.argv.slice(2));
