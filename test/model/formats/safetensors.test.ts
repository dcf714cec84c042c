// Runs the safetensors parser on the writer's output, on literal bytes, and on the headers of an adversary.

import fc from 'fast-check';
import { expect, test } from 'vitest';
import { GptdError } from '../../../src/model/errors.ts';
import {
  parseSafetensorsHeader,
  SAFETENSORS_HEADER_BYTES_MAX,
  SAFETENSORS_TENSORS_MAX,
  safetensorsHeader,
  toFloat32,
} from '../../../src/model/formats/safetensors.ts';

/** Returns a file's first bytes: the length of `json`, then `json`. */
function prefixOf(json: string): Uint8Array {
  const bytes = new TextEncoder().encode(json);
  const out = new Uint8Array(8 + bytes.length);
  new DataView(out.buffer).setBigUint64(0, BigInt(bytes.length), true);
  out.set(bytes, 8);
  return out;
}

const parse = (json: unknown, { dataBytes }: { dataBytes: number }): ReturnType<typeof parseSafetensorsHeader> => {
  const prefix = prefixOf(typeof json === 'string' ? json : JSON.stringify(json));
  return parseSafetensorsHeader(prefix, { fileBytes: prefix.length + dataBytes });
};

const corrupt = (words: string): Error =>
  expect.objectContaining({ code: 'corrupt', message: expect.stringContaining(words) as string }) as Error;

test('a header is written as literal bytes, padded to a multiple of eight', () => {
  const header = safetensorsHeader([{ name: 'a', dtype: 'F32', shape: [2] }], {});
  const json = '{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}';
  expect(json).toHaveLength(54);
  expect(Buffer.from(header)).toEqual(Buffer.from(`8\0\0\0\0\0\0\0${json}  `));
});

test('what the writer writes, the parser reads', () => {
  const tensors = [
    { name: 'wte.weight', dtype: 'F32', shape: [3, 2] },
    { name: 'scalar', dtype: 'BF16', shape: [] },
    { name: 'empty', dtype: 'F16', shape: [0, 7] },
    { name: '__proto__', dtype: 'I64', shape: [1] },
  ] as const;
  const header = safetensorsHeader(tensors, { format: 'pt' });
  const parsed = parseSafetensorsHeader(header, { fileBytes: header.length + 24 + 2 + 0 + 8 });
  expect(parsed.metadata).toEqual({ format: 'pt' });
  expect(parsed.dataStart).toBe(header.length);
  expect(parsed.tensors).toEqual([
    { ...tensors[0], begin: header.length, end: header.length + 24 },
    { ...tensors[1], begin: header.length + 24, end: header.length + 26 },
    { ...tensors[2], begin: header.length + 26, end: header.length + 26 },
    { ...tensors[3], begin: header.length + 26, end: header.length + 34 },
  ]);
});

test('tensors come in the order of their bytes, whatever the order of their names', () => {
  const { tensors } = parse(
    { b: { dtype: 'F32', shape: [1], data_offsets: [4, 8] }, a: { dtype: 'F32', shape: [1], data_offsets: [0, 4] } },
    { dataBytes: 8 },
  );
  expect(tensors.map(({ name }) => name)).toEqual(['a', 'b']);
});

const tensor = { dtype: 'F32', shape: [2], data_offsets: [0, 8] };
test.each<[string, unknown, string]>([
  ['no JSON', '{', 'not JSON'],
  ['an array', [], 'not a JSON object'],
  ['metadata of numbers', { __metadata__: { a: 1 } }, '__metadata__'],
  ['a tensor that is no object', { w: 3 }, '"w" is not described by an object'],
  ['an unknown type', { w: { ...tensor, dtype: 'toString' } }, '"w" has a dtype'],
  ['a negative dimension', { w: { ...tensor, shape: [-2] } }, '"w" has a shape'],
  ['a fractional dimension', { w: { ...tensor, shape: [0.5] } }, '"w" has a shape'],
  ['nine dimensions', { w: { ...tensor, shape: [2, 1, 1, 1, 1, 1, 1, 1, 1] } }, '"w" has a shape'],
  ['one offset', { w: { ...tensor, data_offsets: [8] } }, '"w" has data_offsets'],
  ['swapped offsets', { w: { ...tensor, data_offsets: [8, 0] } }, '"w" lies at 8 to 0'],
  ['an end outside', { w: { ...tensor, shape: [3], data_offsets: [0, 12] } }, '"w" lies at 0 to 12'],
  [
    'a shape of another size',
    { w: { ...tensor, shape: [3] } },
    '"w" of shape (3) and type F32 needs 12 bytes but has 8',
  ],
  ['a product past 2^53', { w: { ...tensor, shape: [2 ** 40, 2 ** 40] } }, '"w" of shape'],
  ['an overlap', { w: tensor, v: tensor }, 'begins at byte'],
  ['a gap', { w: { ...tensor, shape: [1], data_offsets: [4, 8] } }, '"w" begins at byte'],
  ['bytes left over', { w: { ...tensor, shape: [1], data_offsets: [0, 4] } }, 'but the file has'],
])('%s is refused', (_what, json, words) => {
  expect(() => parse(json, { dataBytes: 8 })).toThrow(corrupt(words));
});

test('lengths are refused before anything is read', () => {
  expect(() => parseSafetensorsHeader(new Uint8Array(3), { fileBytes: 3 })).toThrow(corrupt('3 bytes'));
  const long = new Uint8Array(8);
  new DataView(long.buffer).setBigUint64(0, BigInt(SAFETENSORS_HEADER_BYTES_MAX + 1), true);
  expect(() => parseSafetensorsHeader(long, { fileBytes: 2 ** 40 })).toThrow(corrupt('1048577 bytes'));
  expect(() => parseSafetensorsHeader(new Uint8Array(8).fill(255), { fileBytes: 2 ** 40 })).toThrow(
    corrupt('header has'),
  );
  const cut = prefixOf('{"w":1}').subarray(0, 10);
  expect(() => parseSafetensorsHeader(cut, { fileBytes: 10 })).toThrow(corrupt('ends at byte 15'));
});

test('too many tensors are refused', () => {
  const entry = { dtype: 'U8', shape: [0], data_offsets: [0, 0] };
  const many = (count: number) => Object.fromEntries(Array.from({ length: count }, (_, i) => [`t${i}`, entry]));
  expect(parse(many(SAFETENSORS_TENSORS_MAX), { dataBytes: 0 }).tensors).toHaveLength(SAFETENSORS_TENSORS_MAX);
  expect(() => parse(many(SAFETENSORS_TENSORS_MAX + 1), { dataBytes: 0 })).toThrow(corrupt('8193 tensors'));
});

/** Expects that the parser either refuses the bytes as corrupt or returns ranges that tile the data. */
function survives(prefix: Uint8Array, fileBytes: number): void {
  try {
    const { tensors, dataStart } = parseSafetensorsHeader(prefix, { fileBytes });
    let at = dataStart;
    for (const { begin, end } of tensors) {
      expect(begin).toBe(at);
      expect(end).toBeGreaterThanOrEqual(begin);
      at = end;
    }
    expect(at).toBe(fileBytes);
  } catch (error) {
    if (!(error instanceof GptdError)) throw error;
    expect(error.code).toBe('corrupt');
  }
}

test('random bytes, random JSON and damaged headers are refused as corrupt or tile the data', () => {
  const number = fc.oneof(fc.nat(16), fc.integer(), fc.double(), fc.constantFrom(2 ** 53, 2 ** 53 - 1, -0, 1e308));
  const entry = fc.record(
    {
      dtype: fc.constantFrom('F32', 'F16', 'U8', 'I64', 'X', '__proto__'),
      shape: fc.oneof(fc.array(number, { maxLength: 4 }), fc.constant(null)),
      data_offsets: fc.array(number, { maxLength: 3 }),
    },
    { requiredKeys: [] },
  );
  fc.assert(
    fc.property(fc.uint8Array({ maxLength: 64 }), fc.nat(80), (bytes, fileBytes) => survives(bytes, fileBytes)),
    { numRuns: 500 },
  );
  fc.assert(
    fc.property(
      fc.oneof(
        fc.json(),
        fc.dictionary(fc.string(), entry).map((json) => JSON.stringify(json)),
      ),
      fc.nat(64),
      (json, data) => {
        const prefix = prefixOf(json);
        survives(prefix, prefix.length + data);
      },
    ),
    { numRuns: 1000 },
  );
  const good = safetensorsHeader(
    [
      { name: 'a', dtype: 'F32', shape: [2, 3] },
      { name: 'b', dtype: 'F16', shape: [4] },
    ],
    { k: 'v' },
  );
  fc.assert(
    fc.property(fc.nat(good.length - 1), fc.nat(255), (at, value) => {
      const damaged = good.slice();
      damaged[at] = value;
      survives(damaged, good.length + 32);
    }),
    { numRuns: 1000 },
  );
});

test('F32 is copied, from any alignment', () => {
  const bytes = Buffer.alloc(9);
  bytes.writeFloatLE(1.5, 1);
  bytes.writeFloatLE(-2, 5);
  const values = toFloat32(bytes.subarray(1), 'F32');
  bytes.fill(0);
  expect([...values]).toEqual([1.5, -2]);
});

test('F16 and BF16 widen exactly, with subnormals, infinities and NaN', () => {
  const halves = Uint16Array.of(0x3c00, 0xc000, 0x0001, 0x83ff, 0x7bff, 0x0000, 0x8000, 0x7c00, 0xfc00, 0x7e00, 0x3555);
  expect([...toFloat32(new Uint8Array(halves.buffer), 'F16')]).toEqual([
    1,
    -2,
    2 ** -24,
    -1023 * 2 ** -24,
    65504,
    0,
    -0,
    Infinity,
    -Infinity,
    NaN,
    0.333251953125,
  ]);
  const brain = Uint16Array.of(0x3f80, 0xc040, 0x0001, 0x7f80);
  expect([...toFloat32(new Uint8Array(brain.buffer), 'BF16')]).toEqual([1, -3, 2 ** -133, Infinity]);
});

test('other types, and incomplete values, are refused', () => {
  expect(() => toFloat32(new Uint8Array(8), 'I64')).toThrow(corrupt('I64'));
  expect(() => toFloat32(new Uint8Array(7), 'F32')).toThrow(corrupt('7 bytes'));
});
