// This file decides the order in which a snapshot of all stages is read. Weights come in table order, because their digest does.
// The moments come from the table's end, so that the last stages are drained while the weights of the first ones are read.

import type { GptConfig } from '../../model/config.ts';
import { DTYPE_BYTES, ownsTensor, tensorTable, type TableOptions } from '../../model/tensors.ts';
import { CHUNK_SIZE, type ChunkAddress, type TensorChunk, type TensorPart } from '../../workers/store/messages.ts';
import type { StageRange } from '../../workers/training/messages.ts';

/** One request to a stage reads at most this many bytes and chunks. */
const GROUP_BYTES = 16 << 20;
const GROUP_CHUNKS_MAX = 256;
/** The number of requests that are under way ahead of the store. A stage answers one only between two units of its own work. */
const GROUPS_AHEAD = 4;
/** The largest number of groups between the stages and the store. */
const BUFFERS_MAX = 6;

export interface Group {
  /** The index of the stage that owns all of the group. */
  readonly stage: number;
  readonly addresses: ChunkAddress[];
}

/** Returns the number of elements in all chunks of the group. */
export const groupElements = ({ addresses }: Group): number => addresses.reduce((sum, { count }) => sum + count, 0);

/** Returns all chunks of the model's state, in groups to be read one after another. Only the trained tensors have moments. */
export function snapshotGroups(config: GptConfig, stages: readonly StageRange[], options: TableOptions = {}): Group[] {
  const table = tensorTable(config, options);
  const groupsOf = (specs: typeof table, parts: readonly TensorPart[]): Group[] => {
    const groups: Group[] = [];
    let elements = 0;
    for (const spec of specs) {
      const stage = stages.findIndex((range) => ownsTensor(range, spec));
      for (const part of parts) {
        for (let start = 0; start < spec.size; start += CHUNK_SIZE) {
          const count = Math.min(CHUNK_SIZE, spec.size - start);
          const last = groups.at(-1);
          const full =
            elements + count > GROUP_BYTES / DTYPE_BYTES.float32 || last?.addresses.length === GROUP_CHUNKS_MAX;
          if (last?.stage !== stage || full) {
            groups.push({ stage, addresses: [] });
            elements = 0;
          }
          groups.at(-1)!.addresses.push({ tensor: spec.name, part, start, count });
          elements += count;
        }
      }
    }
    return groups;
  };
  const weights = groupsOf(table, ['w']);
  const trained = table.filter((spec) => spec.trained);
  const moments = groupsOf(trained.reverse(), ['m', 'v']);
  // Two groups of moments come behind each group of weights, because there are twice as many.
  const order = weights.flatMap((group, i) => [group, ...moments.slice(2 * i, 2 * i + 2)]);
  return [...order, ...moments.slice(2 * weights.length)];
}

/**
 * Holds the shared memory through which groups go from the stages to the store. If arrays moved from thread to thread instead,
 * the garbage collector of each thread would run for every 64 MB.
 */
export class GroupBuffers {
  readonly #all: readonly SharedArrayBuffer[];
  #free: SharedArrayBuffer[];
  #waiting: ((buffer: SharedArrayBuffer) => void)[] = [];

  /** Each buffer has room for the largest group. Small models have few and small buffers. */
  constructor(groups: readonly Group[]) {
    const bytes = Math.max(...groups.map(groupElements)) * DTYPE_BYTES.float32;
    this.#all = Array.from({ length: Math.min(groups.length, BUFFERS_MAX) }, () => new SharedArrayBuffer(bytes));
    this.#free = [...this.#all];
  }

  /** Resolves to a free buffer. Callers that wait get buffers in the order in which they asked. */
  async take(): Promise<SharedArrayBuffer> {
    return this.#free.pop() ?? (await new Promise((resolve) => this.#waiting.push(resolve)));
  }

  give(buffer: SharedArrayBuffer): void {
    const next = this.#waiting.shift();
    if (next === undefined) this.#free.push(buffer);
    else next(buffer);
  }

  /** Takes all buffers back when none of them is in use any more. A caller that waits for one gets none. */
  reclaim(): void {
    this.#free = [...this.#all];
    this.#waiting = [];
  }
}

/** Returns the group's chunks, as views of the memory that it was read into. */
export function chunksIn(buffer: SharedArrayBuffer, { addresses }: Group): TensorChunk[] {
  let end = 0;
  return addresses.map(({ tensor, part, start, count }) => {
    const bytes = new Uint8Array(buffer, end, count * DTYPE_BYTES.float32);
    end += bytes.length;
    return { tensor, part, offsetBytes: start * DTYPE_BYTES.float32, bytes };
  });
}

/** Reads the groups in order, some of them ahead of the caller, and yields the chunks of each. */
export async function* readGroups(
  groups: readonly Group[],
  read: (group: Group) => Promise<readonly TensorChunk[]>,
): AsyncGenerator<readonly TensorChunk[]> {
  const ahead: Promise<readonly TensorChunk[]>[] = [];
  for (const group of groups) {
    const chunks = read(group);
    // This is awaited in its turn, and may fail before that.
    chunks.catch(() => undefined);
    ahead.push(chunks);
    if (ahead.length >= GROUPS_AHEAD) yield await ahead.shift()!;
  }
  for (const chunks of ahead) yield await chunks;
}
