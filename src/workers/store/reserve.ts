// Room on the disk. A file of zeros beside the database holds some back: when the disk is full it is removed, so that events and
// states can still be written while what needs more waits. It is made again when there is room.

import { closeSync, fsyncSync, openSync, rmSync, statfsSync, statSync, writeSync } from 'node:fs';
import path from 'node:path';
import type Database from 'better-sqlite3';
import { DiskFull } from '../../model/errors.ts';

const RESERVE_BYTES = 16 << 20;
/**
 * The room that a write needs beside its own bytes: for the log before they reach the file, and for whatever else writes to the
 * disk.
 */
const SLACK_BYTES = 24 << 20;
const PIECE = Buffer.alloc(1 << 20);

const reservePath = (dataDir: string): string => path.join(dataDir, 'reserve');

interface DiskSpace {
  /** The bytes that can be written: what is free on the disk, and the free pages of the file. */
  freeBytes(): number;
  /** Throws DiskFull unless `sizeBytes` more can be written. */
  admit(sizeBytes: number, what: string): void;
  /** After a write has failed for want of room: gives the reserve up and returns the error to throw. */
  full(cause: unknown): DiskFull;
  /** Makes the reserve where it is missing and there is room. */
  restore(): void;
}

export function diskSpace(db: Database.Database, dataDir: string): DiskSpace {
  const freeOnDisk = (): number => {
    const { bavail, bsize } = statfsSync(dataDir);
    return bavail * bsize;
  };
  const pragma = (name: string): number => Number(db.pragma(name, { simple: true }));
  const freeBytes = (): number => freeOnDisk() + pragma('freelist_count') * pragma('page_size');
  return {
    freeBytes,
    admit(sizeBytes, what) {
      const needed = sizeBytes + SLACK_BYTES;
      const free = freeBytes();
      if (free >= needed) return;
      throw new DiskFull(
        `The disk is full: ${what} needs about ${megabytes(needed)} and ${megabytes(free)} are free in ${dataDir}.`,
        needed,
      );
    },
    full(cause) {
      rmSync(reservePath(dataDir), { force: true });
      return new DiskFull(`The disk of ${dataDir} is full: free some space.`, RESERVE_BYTES + SLACK_BYTES, { cause });
    },
    restore() {
      const present = statSync(reservePath(dataDir), { throwIfNoEntry: false })?.size === RESERVE_BYTES;
      if (!present && freeOnDisk() > 2 * RESERVE_BYTES) writeReserve(reservePath(dataDir));
    },
  };
}

/** Writes every byte of the reserve: a file with a hole would hold nothing back. When that fails, it is tried again later. */
function writeReserve(file: string): void {
  try {
    const handle = openSync(file, 'w', 0o600);
    try {
      for (let written = 0; written < RESERVE_BYTES; written += PIECE.length) writeSync(handle, PIECE);
      fsyncSync(handle);
    } finally {
      closeSync(handle);
    }
  } catch {
    rmSync(file, { force: true });
  }
}

const megabytes = (bytes: number): string => `${(bytes / 1e6).toFixed(0)} MB`;
