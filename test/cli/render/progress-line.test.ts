// Checks the progress line on a terminal and elsewhere. The test sets the clock.

import { afterEach, beforeEach, expect, it, vi } from 'vitest';
import { ProgressLine } from '../../../src/cli/render/progress-line.ts';

class Screen {
  readonly isTTY: boolean;
  readonly columns = 20;
  written = '';

  constructor({ isTTY }: { readonly isTTY: boolean }) {
    this.isTTY = isTTY;
  }

  write(text: string): boolean {
    this.written += text;
    return true;
  }
}

beforeEach(() => void vi.useFakeTimers());
afterEach(() => void vi.useRealTimers());

it('redraws one line on a terminal, which is always narrower than the terminal', () => {
  const screen = new Screen({ isTTY: true });
  const line = new ProgressLine(screen);
  line.update(() => 'not drawn: a newer one comes first');
  line.update(({ columns }) => `${columns}${'x'.repeat(40)}`);
  vi.advanceTimersByTime(100);
  expect(screen.written).toBe(`\r\x1b[2K19${'x'.repeat(17)}`);
  line.close();
  expect(screen.written.endsWith('x\r\x1b[2K')).toBe(true);
});

it('prints lasting lines above the live one', () => {
  const screen = new Screen({ isTTY: true });
  const line = new ProgressLine(screen);
  line.update(() => 'live');
  vi.advanceTimersByTime(100);
  line.print('lasting');
  vi.advanceTimersByTime(100);
  expect(screen.written).toBe('\r\x1b[2Klive\r\x1b[2Klasting\n\r\x1b[2Klive');
  line.close();
});

it('prints a plain line every five seconds elsewhere, and none when nothing is new', () => {
  const screen = new Screen({ isTTY: false });
  const line = new ProgressLine(screen);
  line.update(() => 'one');
  vi.advanceTimersByTime(4_999);
  expect(screen.written).toBe('');
  line.update(({ live }) => `two, live ${live}`);
  vi.advanceTimersByTime(10_001);
  expect(screen.written).toBe('two, live false\n');
  line.close();
  line.close();
  expect(screen.written).toBe('two, live false\n');
});
