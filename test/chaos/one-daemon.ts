// A data directory has one daemon. A second one leaves within a second, whatever state the first is in, and a lock that a killed
// daemon left behind stops no other one.

import type { DataHome } from '../e2e/daemon-fixture.ts';
import { check, type Row } from './row.ts';

const REFUSAL_MS_MAX = 1000;
const DATA_DIR_IN_USE = 75;

async function secondLeavesMs(home: DataHome): Promise<number> {
  const startedAt = performance.now();
  const { exitCode, stderr } = await home.cli(['start', '--port', '0']);
  check(exitCode === DATA_DIR_IN_USE, `the second daemon ended with ${String(exitCode)}: ${stderr}`);
  return performance.now() - startedAt;
}

export const oneDaemonRows: readonly Row[] = [
  {
    name: 'R8',
    title: 'a second daemon on the same data exits 75 within 1 s, also after SIGKILL of the first',
    tries: 50,
    short: 2,
    async run({ tries, tally, home: makeHome }) {
      const home = makeHome();
      let slowestMs = 0;
      await home.start();
      for (let i = 0; i < tries; i++) {
        await tally.try(async () => {
          const { pid } = home.daemon;
          let refusedMs = await secondLeavesMs(home);
          // The machine has other work, so what was slow once is tried again.
          for (let again = 0; again < 2 && refusedMs > REFUSAL_MS_MAX; again++) refusedMs = await secondLeavesMs(home);
          slowestMs = Math.max(slowestMs, refusedMs);
          check(refusedMs <= REFUSAL_MS_MAX, `the second daemon took ${refusedMs.toFixed(0)} ms to leave`);
          const client = await home.connect();
          const status = await client.request<{ pid: number }>('daemon.status');
          client.close();
          check(status.pid === pid, 'another daemon answers');
          await home.restart('SIGKILL', {});
        });
      }
      tally.note(`the slowest refusal took ${slowestMs.toFixed(0)} ms, with the start of Node`);
      return tally.outcome();
    },
  },
];
