// A submission under a key is cut after every byte of the request and of the reply. The client knows nothing then and submits again,
// and there is one job.

import { setImmediate as turn } from 'node:timers/promises';
import { RawClient } from '../e2e/daemon-fixture.ts';
import { CuttingProxy } from './cutting-proxy.ts';
import { queried } from './probe.ts';
import { portOf } from './raw-socket.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';

/** Makes keys of one length, so that every submission has equally many bytes. */
const keyOf = (index: number): string => `key-${String(index).padStart(8, '0')}`;
const SPEC = { config: 'GPT_CONFIG_124M' };

async function everyByte({ tries, random, tally, home: makeHome }: Context): Promise<Outcome> {
  const home = makeHome();
  const { token } = await home.start();
  const proxy = new CuttingProxy(portOf(home.daemon));
  const cutUrl = `http://127.0.0.1:${await proxy.listen()}`;
  const direct = await home.connect();
  /** Submits through the proxy. Resolves to the job's id, or to null when the connection was cut before the reply was complete. */
  const submitCut = async (key: string): Promise<string | null> => {
    let client;
    try {
      client = await RawClient.connect({ url: cutUrl, token });
      return await client.submit('params', SPEC, key);
    } catch {
      return null;
    } finally {
      client?.close();
    }
  };

  check((await submitCut(keyOf(0))) !== null, 'a connection that is not cut failed');
  const { up, down } = proxy.passed;
  const bytes = up + down;
  const known = new Set<string>();
  for (let i = 0; i < tries; i++) {
    const at = tries < bytes ? Math.floor((i * bytes) / tries) : i % bytes;
    await tally.try(async () => {
      const cutsBefore = proxy.cuts;
      proxy.bytesUpLeft = at < up ? at : Infinity;
      proxy.bytesLeft = at < up ? Infinity : at - up;
      const key = keyOf(i + 1);
      const first = await submitCut(key);
      const where = at < up ? `byte ${at} of ${up} of the request` : `byte ${at - up} of ${down} of the reply`;
      check(first === null, `${where}: the answer came although it was cut`);
      check(proxy.cuts === cutsBefore + 1, `${where}: the connection was not cut`);
      // In half of the tries the daemon has time to finish the first submission before it gets the second one.
      if (random.once(2)) for (let turns = random.integer(1, 20); turns > 0; turns--) await turn();
      const jobId = await direct.submit('params', SPEC, key);
      check((await direct.submit('params', SPEC, key)) === jobId, `${where}: the key names two jobs`);
      check(!known.has(jobId), `${where}: two keys name one job`);
      known.add(jobId);
    });
  }
  proxy.close();
  const jobCount = queried(home, 'SELECT count(*) FROM jobs');
  if (jobCount !== tries + 1) tally.fault(`${String(jobCount)} jobs for ${tries + 1} keys`);
  tally.note(`${up} bytes of request and ${down} of reply, with the handshake; ${String(jobCount)} jobs`);
  return tally.outcome();
}

export const submitOnceRows: readonly Row[] = [
  {
    name: 'R15',
    title: 'a submission under a key, cut at every byte of request and reply and made again, is one job',
    tries: 1000,
    short: 40,
    run: everyByte,
  },
];
