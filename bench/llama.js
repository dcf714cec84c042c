// Starts peer/llama.js and talks to it. llama.cpp gets GGUF files that gptd itself exports. It runs only where
// `npm --prefix bench/peer install` has installed node-llama-cpp.

import { spawn } from 'node:child_process';
import { existsSync } from 'node:fs';
import path from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const PEER = fileURLToPath(new URL('peer/', import.meta.url));
/** The GGUF type that corresponds to each of gptd's formats. */
const GGUF_TYPE = { f32: 'f32', int8: 'q8_0', int4: 'q4_0' };

/**
 * Resolves to null where the peer is not installed. `ask(format, request)` resolves to a rate; the request names the number of
 * `threads`.
 */
export async function startLlama(daemon, { name, formats }) {
  if (!existsSync(path.join(PEER, 'node_modules', 'node-llama-cpp'))) return null;
  const child = spawn(process.execPath, [path.join(PEER, 'llama.js')], { stdio: ['pipe', 'pipe', 'inherit'] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const send = async (request) => {
    child.stdin.write(`${JSON.stringify(request)}\n`);
    const { value, done } = await lines.next();
    if (done) throw new Error('llama.cpp has ended');
    return JSON.parse(value);
  };
  const fileOf = (format) => path.join(daemon.folder, `${name}-${GGUF_TYPE[format]}.gguf`);
  for (const format of formats) {
    await daemon.cli('export', name, '--format', 'gguf', '--type', GGUF_TYPE[format], fileOf(format));
    await send({ type: 'load', file: fileOf(format) });
  }
  return {
    ask: async (format, request) => (await send({ ...request, model: fileOf(format) })).rate,
    stop: () => {
      child.stdin.end();
      return new Promise((resolve) => child.once('exit', resolve));
    },
  };
}
