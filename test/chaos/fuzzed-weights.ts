// Files of weights whose headers lie: something about a good header of safetensors or GGUF is changed. The readers either refuse it
// as corrupt or return ranges that tile the file. The daemon that imports such files keeps its memory and goes on working.

import { createHash } from 'node:crypto';
import { GptdError } from '../../src/model/errors.ts';
import { ggufHeader, type GgufTensor } from '../../src/model/formats/gguf.ts';
import { parseSafetensorsHeader, safetensorsHeader } from '../../src/model/formats/safetensors.ts';
import { tensorTable } from '../../src/model/tensors.ts';
import { readGgufHeader } from '../../src/model/formats/weights-header.ts';
import type { DataHome, RawClient } from '../e2e/daemon-fixture.ts';
import { MemoryGrowth, RESIDENT } from './memory-growth.ts';
import { inParallel } from './probe.ts';
import type { Random } from './random.ts';
import { check, type Context, type Outcome, type Row } from './row.ts';

const CONFIG = { vocab_size: 12, context_length: 4, emb_dim: 4, n_heads: 1, n_layers: 1 };
const TABLE = tensorTable({ ...CONFIG, drop_rate: 0, qkv_bias: true, tie_weights: false });
const READ_MS_MAX = 50;
/** One try of so many goes through the daemon as an import. */
const IMPORTED = 10;
const IMPORTS_AT_ONCE = 4;
const GROWTH_MIB_MAX = 32;
/** The daemon's heap has its working size after so many imports. */
const WARM_IMPORTS = 1000;
const COLD_GROWTH_MIB_MAX = 96;
/** The error codes that say that the file is at fault. */
const FAULTS_OF_FILES = ['corrupt', 'incompatible', 'invalid_spec', 'limit_exceeded'];
const NUMBERS = [-1, 0, 1, 3, 0.5, 1e308, 2 ** 31, 2 ** 32, 2 ** 53, 2 ** 53 - 1, -0, 1e21, NaN];

type Json = Record<string, unknown>;

const fileOf = (json: string | Uint8Array, data: Uint8Array, declared?: bigint): Buffer => {
  const header = Buffer.from(json as string);
  const length = Buffer.alloc(8);
  length.writeBigUInt64LE(declared ?? BigInt(header.length));
  return Buffer.concat([length, header, data]);
};

/** Makes a header that is in order and its data, which are small numbers. */
function goodSafetensors(random: Random): { json: Json; data: Buffer } {
  const header = safetensorsHeader(
    TABLE.map(({ name, shape }) => ({ name, shape, dtype: 'F32' as const })),
    { format: 'pt' },
  );
  const json = JSON.parse(Buffer.from(header.subarray(8)).toString()) as Json;
  const values = TABLE.reduce((sum, { shape }) => sum + shape.reduce((product, length) => product * length, 1), 0);
  return { json, data: Buffer.from(Float32Array.from({ length: values }, () => random.fraction() - 0.5).buffer) };
}

const evil = (random: Random): unknown =>
  random.pick<unknown>([random.pick(NUMBERS), null, [], {}, '', 'F32', '__proto__', [[1]], [0, 8], 'x'.repeat(5000)]);

const SAFETENSORS_ATTACKS: readonly ((good: { json: Json; data: Buffer }, random: Random) => Buffer)[] = [
  // One field of one tensor is changed.
  ({ json, data }, random) => {
    const entry = json[random.pick(Object.keys(json))] as Json;
    entry[random.pick(['dtype', 'shape', 'data_offsets', 'more'])] = evil(random);
    return fileOf(JSON.stringify(json), data);
  },
  // One number of a shape or an offset is changed.
  ({ json, data }, random) => {
    const { shape, data_offsets: offsets } = json[random.pick(Object.keys(json).slice(1))] as Record<string, number[]>;
    const list = random.pick([shape, offsets]);
    list[random.integer(0, list.length - 1)] = random.pick(NUMBERS);
    return fileOf(JSON.stringify(json), data);
  },
  // Two tensors are in each other's place, one is missing, or one has another name.
  ({ json, data }, random) => {
    const [a, b] = [random.pick(Object.keys(json)), random.pick(Object.keys(json))];
    [json[a], json[b]] = [json[b], json[a]];
    if (random.once(3)) Reflect.deleteProperty(json, a);
    if (random.once(3)) json[random.pick(['__proto__x', '', '../w', 'constructor', 'wte.weight '])] = json[b];
    return fileOf(JSON.stringify(json), data);
  },
  ({ json, data }, random) => fileOf(JSON.stringify({ ...json, __metadata__: evil(random) }), data),
  // Bytes of the header are changed.
  ({ json, data }, random) => {
    const bytes = Buffer.from(JSON.stringify(json));
    for (let i = random.integer(1, 4); i > 0; i--) bytes[random.integer(0, bytes.length - 1)] = random.integer(0, 255);
    return fileOf(bytes, data);
  },
  // The declared length is not the header's.
  ({ json, data }, random) => {
    const near = BigInt(JSON.stringify(json).length + random.integer(-40, 40));
    return fileOf(
      JSON.stringify(json),
      data,
      random.pick([near, 0n, (1n << 64n) - 1n, 1n << 53n, 1n << 20n, 1n << 63n]),
    );
  },
  // The file ends early, or goes on.
  ({ json, data }, random) => {
    const file = fileOf(JSON.stringify(json), data);
    return random.once(3) ? Buffer.concat([file, random.bytes(9)]) : file.subarray(0, random.integer(0, file.length));
  },
  ({ data }, random) => fileOf(random.pick(['[', '{"a":', '[{"a":']).repeat(random.integer(1, 20_000)), data),
  ({ data }, random) => fileOf(random.bytes(random.integer(0, 200)), data),
  ({ data }, random) => {
    const entry = { dtype: 'F32', shape: [0], data_offsets: [0, 0] };
    const count = random.integer(100, 9000);
    return fileOf(JSON.stringify(Object.fromEntries(Array.from({ length: count }, (_, i) => [`t${i}`, entry]))), data);
  },
];

/** Makes a file that is in order but for one value, which is not finite. */
function wildValue(random: Random): Buffer {
  const { json, data } = goodSafetensors(random);
  const at = 4 * random.integer(0, data.length / 4 - 1);
  data.writeFloatLE(random.pick([NaN, Infinity, -Infinity]), at);
  return fileOf(JSON.stringify(json), data);
}

const fuzzedSafetensors = (random: Random): Buffer => random.pick(SAFETENSORS_ATTACKS)(goodSafetensors(random), random);

function fuzzedGguf(random: Random): Buffer {
  const metadata = [
    ['general.architecture', { type: 'string', value: 'gpt2' }],
    ['gpt2.block_count', { type: 'uint32', value: 1 }],
    ['gpt2.eps', { type: 'float32', value: 1e-5 }],
    ['tokenizer.add_bos', { type: 'bool', value: false }],
    ['tokenizer.ggml.tokens', { type: 'strings', value: ['a', 'b', 'c'] }],
    ['tokenizer.ggml.token_type', { type: 'int32s', value: [1, 1, 1] }],
  ] as const;
  const tensors = TABLE.map(({ name, shape }): GgufTensor => ({ name, shape, type: 'f32' }));
  const bytes = Buffer.from(ggufHeader(metadata, tensors));
  const word = random.integer(0, bytes.length - 8);
  switch (random.integer(0, 4)) {
    case 0:
      bytes.writeBigUInt64LE(random.pick([0n, 1n, (1n << 64n) - 1n, 1n << 63n, 1n << 53n, 1n << 24n, 65_536n]), word);
      return bytes;
    case 1:
      // The counts of tensors and of values are changed.
      bytes.writeBigUInt64LE(BigInt(random.integer(0, 1 << 17)), random.pick([8, 16]));
      return bytes;
    case 2:
      return bytes.subarray(0, random.integer(0, bytes.length));
    case 3:
      return Buffer.concat([bytes.subarray(0, word), random.bytes(random.integer(1, 64)), bytes.subarray(word)]);
    default:
      for (let i = random.integer(1, 6); i > 0; i--)
        bytes[random.integer(4, bytes.length - 1)] = random.integer(0, 255);
      return bytes;
  }
}

/** Reads a header and returns whether it was refused as `corrupt`. Throws when one that is accepted names what is not in the file. */
function readRefuses(file: Buffer, isGguf: boolean): boolean {
  try {
    if (isGguf) {
      const read = (offset: number, length: number): Uint8Array => {
        check(offset >= 0 && length >= 0 && offset + length <= file.length, `a read of ${length} bytes at ${offset}`);
        return file.subarray(offset, offset + length);
      };
      const { tensors } = readGgufHeader(read, file.length);
      check(tensors.length <= file.length, `${tensors.length} tensors in ${file.length} bytes`);
      return false;
    }
    const { tensors, dataStart } = parseSafetensorsHeader(file, { fileBytes: file.length });
    let at = dataStart;
    for (const { name, begin, end } of tensors) {
      check(begin === at && end >= begin, `tensor ${name} lies at ${begin} to ${end}, behind ${at}`);
      at = end;
    }
    check(at === file.length, `the tensors end at ${at} of ${file.length}`);
    return false;
  } catch (error) {
    if (error instanceof GptdError && error.code === 'corrupt') return true;
    throw error;
  }
}

async function fuzzedWeights({ tries, random, tally, home: makeHome }: Context): Promise<Outcome> {
  let refused = 0;
  let slowestMs = 0;
  const imported = Math.ceil(tries / IMPORTED);
  for (let i = imported; i < tries; i++) {
    const isGguf = random.once(3);
    const file = isGguf ? fuzzedGguf(random) : fuzzedSafetensors(random);
    await tally.try(() => {
      let tookMs = Infinity;
      // The machine has other work, so what was slow once is read again.
      for (let again = 0; again < 3 && tookMs > READ_MS_MAX; again++) {
        const startedAt = performance.now();
        if (readRefuses(file, isGguf) && again === 0) refused += 1;
        tookMs = performance.now() - startedAt;
      }
      slowestMs = Math.max(slowestMs, tookMs);
      check(tookMs <= READ_MS_MAX, `a header took ${tookMs.toFixed(0)} ms`);
    });
  }
  check(refused > (tries - imported) / 2, `only ${refused} headers were refused`);
  tally.note(`${refused} of ${tries - imported} headers refused, the slowest took ${slowestMs.toFixed(1)} ms`);

  const home = makeHome();
  await home.start({ flags: ['--log-level', 'warn'] });
  const client = await home.connect();
  let accepted = 0;
  const importOne = async (index: number): Promise<void> => {
    const isWild = random.once(8);
    const file = isWild ? wildValue(random) : fuzzedSafetensors(random);
    const model = `m${index}`;
    const code = await importEnds(home, client, { model, file });
    if (isWild)
      check(
        code === 'corrupt',
        `a value that is not finite was not refused as corrupt: ${code ?? 'the import succeeded'}`,
      );
    else if (code !== null) check(FAULTS_OF_FILES.includes(code), `an import failed with ${code}`);
    if (code !== null) return;
    accepted += 1;
    await client.request('model.delete', { model });
  };
  const attack = async (from: number, to: number): Promise<void> =>
    await inParallel(to - from, {
      width: IMPORTS_AT_ONCE,
      work: (i) => tally.try(() => importOne(from + i)),
    });
  const warm = Math.min(WARM_IMPORTS, Math.ceil(imported / 2));
  await attack(0, warm);
  const resident = await MemoryGrowth.since(home, RESIDENT);
  await attack(warm, imported);
  const mibMax = warm < WARM_IMPORTS ? COLD_GROWTH_MIB_MAX : GROWTH_MIB_MAX;
  const grown = resident.judge(tally, await resident.mib(), mibMax);
  const { json, data } = goodSafetensors(random);
  const sound = await importEnds(home, client, { model: 'sound', file: fileOf(JSON.stringify(json), data) });
  check(sound === null, `a sound file was refused with ${String(sound)} after the fuzzed ones`);
  client.close();
  tally.note(`${imported} imports, ${accepted} of them succeeded; ${grown}`);
  return tally.outcome();
}

/** Uploads and imports a file. Resolves to the code that the import failed with, or to null when it succeeded. */
async function importEnds(
  { daemon: { url, token } }: DataHome,
  client: RawClient,
  { model, file }: { readonly model: string; readonly file: Buffer },
): Promise<string | null> {
  const digest = createHash('sha256').update(file).digest('hex');
  const upload = { method: 'PUT', headers: { authorization: `Bearer ${token}` }, body: new Uint8Array(file) };
  const { ok, status } = await fetch(`${url}/v1/blobs/sha256:${digest}`, upload);
  check(ok, `an upload got ${status}`);
  const jobId = await client.submit('import', { model, files: { 'model.safetensors': digest }, nHeads: 1 });
  await client.subscribe(jobId);
  const last = await client.untilEnd(jobId);
  client.events.splice(0, client.events.length, ...client.events.filter((event) => event.jobId !== jobId));
  await client.request('job.unsubscribe', { jobId });
  return last.type === 'failed' ? last.data.error.code : null;
}

export const fuzzedWeightsRows: readonly Row[] = [
  {
    name: 'R30',
    title: 'fuzzed headers of safetensors and GGUF are refused within 50 ms or read within the file, memory bounded',
    tries: 50_000,
    short: 1500,
    run: fuzzedWeights,
  },
];
