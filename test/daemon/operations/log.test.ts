import { expect, it } from 'vitest';
import { plainLine } from '../../../src/daemon/operations/log.ts';

const time = '2026-08-01T12:30:05.123Z';

it('makes one plain line of a record', () => {
  const record = { level: 'info', time, jobId: 'j1', seconds: 0.5, msg: 'job running' };
  expect(plainLine(JSON.stringify(record))).toBe('12:30:05 info  job running jobId=j1 seconds=0.5\n');
});

it('puts the stack of a bug below its line', () => {
  const record = { level: 'error', time, err: { stack: 'Error: x\n    at y' }, msg: 'oops' };
  expect(plainLine(JSON.stringify(record))).toBe('12:30:05 error oops\nError: x\n    at y\n');
});

it('replaces control characters, which could steer the terminal', () => {
  const record = { level: 'warn', time, msg: 'refused: Host "\u001b[2J\u009b1m"', path: '/\u0007' };
  expect(plainLine(JSON.stringify(record))).toBe('12:30:05 warn  refused: Host "?[2J?1m" path=/?\n');
});
