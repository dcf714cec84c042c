// Checks the flags with which `gptd start` starts a daemon in the background.

import { describe, expect, it } from 'vitest';
import { startArguments } from '../../../../src/cli/commands/daemon/start-flags.ts';

describe('start', () => {
  it('passes on everything but the token', () => {
    const args = startArguments(
      {
        host: '127.0.0.1',
        port: 0,
        engine: 'onnx',
        queueLimit: 5,
        keepJobs: 7,
        logLevel: 'warn',
        workers: 2,
        allowOrigin: ['http://a', 'http://b'],
        token: 'secret',
      },
      '/data',
    );
    expect(args).toEqual([
      'start',
      '--data-dir',
      '/data',
      '--host',
      '127.0.0.1',
      '--port',
      '0',
      '--engine',
      'onnx',
      '--queue-limit',
      '5',
      '--keep-jobs',
      '7',
      '--log-level',
      'warn',
      '--workers',
      '2',
      '--allow-origin',
      'http://a',
      '--allow-origin',
      'http://b',
    ]);
  });
});
