// Bits flip on the disk. A flip in a stored chunk is found when the tensor is read. Damage anywhere in the database either hits
// content, or the database is refused and kept as it is.

import { closeSync, copyFileSync, openSync, readFileSync, rmSync, writeFileSync, writeSync } from 'node:fs';
import path from 'node:path';
import Database from 'better-sqlite3';
import { GptdError } from '../../src/model/errors.ts';
import { openReader } from '../../src/workers/store/reader.ts';
import { parseEvents, type DataHome } from '../e2e/daemon-fixture.ts';
import type { Random } from './random.ts';
import { check, type Row } from './row.ts';
import { makeModel, STEPS, submit, wholeLog } from './training.ts';

/** So many bytes tell a place in a chunk from all others. */
const NEEDLE_BYTES = 24;
/** The unused room of a page may hold copies of what SQLite has moved: a bit is flipped in each of up to so many places. */
const COPIES_MAX = 4;
const ATTEMPTS_MAX = 1000;
/** Content with fewer different bytes is left out: no place in it is rare. Moments that are still zero are such content. */
const BYTE_VALUES_MIN = 64;
const EXIT_FAILED = 1;

interface Piece {
  readonly checkpoint_id: number;
  readonly step: number;
  readonly tensor: string;
  readonly part: 'w' | 'm' | 'v';
  readonly size_bytes: number;
  readonly data: Buffer;
}

export const corruptionRows: readonly Row[] = [
  {
    name: 'R6',
    title: 'every bit that flips in a stored chunk is found, and the newest older checkpoint that is whole is offered',
    tries: 1000,
    short: 40,
    async run({ tries, random, tally, home: makeHome }) {
      const { home, file } = await trained(makeHome());
      const pieces = piecesOf(file);
      for (let i = 0; i < tries; i++) {
        await tally.try(() => {
          const piece = random.pick(pieces);
          const restore = flip(file, { piece, random });
          try {
            checkFound(home.dir, piece);
          } finally {
            restore();
          }
        });
      }
      await tally.try(() => offered(home, { file, pieces, random }));
      return tally.outcome();
    },
  },
  {
    name: 'R7',
    title: 'a database whose structure is damaged is refused, with advice, and kept byte for byte',
    tries: 200,
    short: 4,
    async run({ tries, random, tally, home: makeHome }) {
      const { home, file } = await trained(makeHome());
      const good = path.join(home.dir, 'good');
      copyFileSync(file, good);
      let refusedCount = 0;
      for (let i = 0; i < tries; i++) {
        await tally.try(async () => {
          const bytes = readFileSync(good);
          // The first pages hold headers and trees, and the others mostly content.
          const pageCount = bytes.length / 32768;
          const page = random.once(2) ? random.integer(0, 5) : random.integer(0, pageCount - 1);
          const at = page * 32768 + (random.once(2) ? random.integer(0, 200) : random.integer(0, 32767));
          for (let j = 0; j < 8; j++) bytes[at + j] ^= random.integer(1, 255);
          // A log that a killed daemon has left could hide the damage.
          for (const log of ['-wal', '-shm']) rmSync(`${file}${log}`, { force: true });
          writeFileSync(file, bytes);
          const running = home.run(['start', '--port', '0']);
          const ready = await running.said('is ready at').then(
            () => true,
            () => false,
          );
          if (ready) {
            running.child.kill('SIGKILL');
            await running.ended;
            return;
          }
          refusedCount += 1;
          const { exitCode, stderr } = await running.ended;
          check(exitCode === EXIT_FAILED, `the daemon ended with ${String(exitCode)}: ${stderr}`);
          check(/gptd doctor|schema version/.test(stderr), `the daemon said: ${stderr}`);
          check(readFileSync(file).equals(bytes), 'the damaged file was changed');
        });
      }
      tally.note(`${refusedCount} of ${tries} were refused; in the others the damage hit content or unused room`);
      return tally.outcome();
    },
  },
];

/** Resolves to a home whose daemon is stopped and whose model has several checkpoints. */
async function trained(home: DataHome): Promise<{ home: DataHome; file: string }> {
  await home.start({ workers: 2 });
  await makeModel(home, 'm');
  await wholeLog(home, (await submit(home, 'm', { keepLast: 3 }))!);
  await home.signal('SIGTERM');
  const file = path.join(home.dir, 'gptd.db');
  // This clears what earlier checkpoints left in free pages.
  const db = new Database(file);
  db.exec('VACUUM');
  db.close();
  return { home, file };
}

function piecesOf(file: string): Piece[] {
  const db = new Database(file, { readonly: true });
  try {
    return db
      .prepare<[], Piece>(
        `SELECT checkpoint_id, step, tensor, part, size_bytes, data
         FROM checkpoint_chunks JOIN chunks USING (hash) JOIN checkpoints USING (checkpoint_id)`,
      )
      .all()
      .filter(({ data }) => new Set(data).size >= BYTE_VALUES_MIN);
  } finally {
    db.close();
  }
}

/** Flips one bit of a chunk where it lies in the file. Returns a function that puts it back. */
function flip(file: string, { piece, random }: { piece: Piece; random: Random }): () => void {
  const bytes = readFileSync(file);
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    const at = random.integer(0, piece.size_bytes - NEEDLE_BYTES);
    const places = placesOf(bytes, piece.data.subarray(at, at + NEEDLE_BYTES));
    // Another place is drawn where the bytes go over the end of a page, or where too many others are like them.
    if (places.length === 0 || places.length > COPIES_MAX) continue;
    const [within, mask] = [random.integer(0, NEEDLE_BYTES - 1), 1 << random.integer(0, 7)];
    const write = (flipped: number): void => {
      for (const offset of places) {
        writeByte(file, { place: offset + within, value: bytes[offset + within] ^ flipped });
      }
    };
    write(mask);
    return () => write(0);
  }
  throw new Error(`no place in ${piece.tensor} (${piece.part}) has few others of its kind`);
}

function placesOf(bytes: Buffer, needle: Buffer): number[] {
  const places: number[] = [];
  for (let at = bytes.indexOf(needle); at >= 0 && places.length <= COPIES_MAX; at = bytes.indexOf(needle, at + 1)) {
    places.push(at);
  }
  return places;
}

function writeByte(file: string, { place, value }: { place: number; value: number }): void {
  const handle = openSync(file, 'r+');
  writeSync(handle, Uint8Array.of(value), 0, 1, place);
  closeSync(handle);
}

function checkFound(
  dataDir: string,
  { checkpoint_id: checkpointId, tensor, part, size_bytes: sizeBytes }: Piece,
): void {
  const reader = openReader(dataDir);
  try {
    reader.readTensor({ checkpointId, tensor, part, sizeBytes });
  } catch (error) {
    check(error instanceof GptdError && error.code === 'corrupt', `the damage was told as ${String(error)}`);
    check(error.message.includes(tensor), `the damage was told without its tensor: ${error.message}`);
    return;
  } finally {
    reader.close();
  }
  throw new Error(`a flipped bit in ${tensor} (${part}) was not found`);
}

/** Damages the newest checkpoint's weights: a generation says so and names the checkpoint before, with which it works. */
async function offered(
  home: DataHome,
  { file, pieces, random }: { file: string; pieces: readonly Piece[]; random: Random },
): Promise<void> {
  const piece = random.pick(
    pieces.filter(({ step, part, size_bytes }) => step === STEPS && part === 'w' && size_bytes > 1000),
  );
  flip(file, { piece, random });
  await home.start({ workers: 2 });
  const { exitCode, stdout } = await home.cli(['generate', 'm', '--prompt', 'Line', '--max-tokens', '2', '--json']);
  check(exitCode === EXIT_FAILED, `the generation ended with ${String(exitCode)}`);
  const last = parseEvents(stdout).at(-1);
  const told = last?.type === 'failed' ? last.data.error : null;
  const older = `m@${STEPS - 3}`;
  check(told?.code === 'corrupt' && told.message.includes(piece.tensor), `the failure was ${JSON.stringify(last)}`);
  check(told.message.includes(`whole is ${older}.`), `the offer was ${told.message}`);
  await home.events(['generate', older, '--prompt', 'Line', '--max-tokens', '2']);
}
