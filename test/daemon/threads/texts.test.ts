// Checks the text thread of the built program: tokenizers are shared, few are kept, and one that was closed is opened again for
// its next use.

import { execFile } from 'node:child_process';
import path from 'node:path';
import { promisify } from 'node:util';
import { expect, test } from 'vitest';

test('more tokenizers than the thread keeps encode and decode all the same', async () => {
  const script = path.join(import.meta.dirname, 'text-client.js');
  const dist = path.resolve(import.meta.dirname, '../../../dist');
  const { stdout } = await promisify(execFile)(process.execPath, [script, dist]);
  expect(JSON.parse(stdout)).toEqual({
    wanted: 16,
    rounds: [16, 16],
    isShared: true,
    refused: ['invalid_spec', 'invalid_spec', 'invalid_spec'],
    closed: 'shutting_down',
    deaths: 0,
  });
}, 30_000);
