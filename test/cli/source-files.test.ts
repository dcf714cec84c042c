// Checks that a command refuses unusable files before it sends anything.

import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { afterAll, beforeAll, expect, it } from 'vitest';
import { checkSourceFile } from '../../src/cli/source-files.ts';

let folder: string;
beforeAll(async () => {
  folder = await mkdtemp(join(tmpdir(), 'gptd-source-'));
});
afterAll(() => rm(folder, { recursive: true }));

it('refuses a file that is empty, missing or a directory', async () => {
  await writeFile(join(folder, 'empty.txt'), '');
  await expect(checkSourceFile(join(folder, 'empty.txt'))).rejects.toMatchObject({
    exitCode: 2,
    message: /is empty\.$/,
  });
  await expect(checkSourceFile(folder)).rejects.toMatchObject({
    exitCode: 2,
    message: /is a directory: a file was wanted\.$/,
  });
  await expect(checkSourceFile(join(folder, 'none'))).rejects.toMatchObject({
    exitCode: 2,
    message: /^There is no file /,
  });
});
