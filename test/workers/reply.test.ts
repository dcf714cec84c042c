// What becomes of an error on its way between threads, which is a structured clone.

import Database from 'better-sqlite3';
import { expect, it } from 'vitest';
import { replying } from '../../src/workers/reply.ts';

it('a bug keeps its message and its stack between threads, also one that is no error of V8', async () => {
  const db = new Database(':memory:');
  const failing = replying(() => db.prepare('SELECT * FROM absent'));
  const thrown: unknown = await failing({}).catch((error: unknown) => error);
  const arrived = structuredClone(thrown) as Error;
  expect(arrived.message).toBe('SqliteError: no such table: absent');
  expect(arrived.stack).toContain('reply.test');
  db.close();
});
