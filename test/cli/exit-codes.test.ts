// Checks which exit code an error gets, and the one line that is printed for it.

import { CommanderError } from 'commander';
import { describe, expect, it } from 'vitest';
import { ClientFault, RpcFault } from '../../src/cli/client/faults.ts';
import { CliError, errorLine, exitCodeOf } from '../../src/cli/exit-codes.ts';
import { ERROR_CODES, GptdError } from '../../src/daemon/protocol/errors.ts';

describe('exit codes', () => {
  it('are 2 for a spec or parameters that the daemon refuses, and 1 for every other answer', () => {
    for (const reason of ERROR_CODES) {
      expect(exitCodeOf(new RpcFault('no', { code: -32000, reason })), reason).toBe(reason === 'invalid_spec' ? 2 : 1);
    }
    expect(exitCodeOf(new RpcFault('no', { code: -32602 }))).toBe(2);
    expect(exitCodeOf(new RpcFault('no', { code: -32601 }))).toBe(1);
  });

  it.each([
    ['no_daemon', 69],
    ['refused', 1],
    ['failed', 1],
    ['too_long', 2],
  ] as const)('follow from the fault %s of the client: %i', (problem, exitCode) => {
    expect(exitCodeOf(new ClientFault(problem, 'no'))).toBe(exitCode);
  });

  it('come from the error itself, from help or from usage, and are 1 for a bug', () => {
    expect(exitCodeOf(new CliError(69, 'no daemon'))).toBe(69);
    expect(exitCodeOf(new CommanderError(0, 'commander.helpDisplayed', ''))).toBe(0);
    expect(exitCodeOf(new CommanderError(1, 'commander.unknownOption', ''))).toBe(2);
    expect(exitCodeOf(new GptdError('invalid_spec', 'bad'))).toBe(2);
    expect(exitCodeOf(new TypeError('a bug'))).toBe(1);
  });
});

describe('the error line', () => {
  it('is one line', () => {
    expect(errorLine(new Error("error: unknown command 'strat'\n(Did you mean start?)"))).toBe(
      "gptd: unknown command 'strat' (Did you mean start?)",
    );
    expect(errorLine('text')).toBe('gptd: text');
  });
});
