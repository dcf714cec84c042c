// The chaos suite: every promise of durability, security and streaming attacked at its full count, on the built daemon.
//   npm run test:chaos -- --help
// The rows are TypeScript and are compiled as they are loaded, by the tool that runs the other tests.

import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { runnerImport } from 'vite';
import { ensure } from '../../scripts/ensure.js';

ensure();
const suite = fileURLToPath(new URL('suite.ts', import.meta.url));
const { module } = await runnerImport(suite, { configFile: false, logLevel: 'error' });
process.exitCode = await module.main(process.argv.slice(2));
