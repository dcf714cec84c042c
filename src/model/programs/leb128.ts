// Whole numbers as protobuf and WebAssembly write them: seven bits in each byte, the lowest bits first.
// See https://en.wikipedia.org/wiki/LEB128.

/** Returns the bytes of a number from 0 to 2^53 - 1. */
export function leb128(value: number): number[] {
  const bytes: number[] = [];
  let left = value;
  for (; left >= 128; left = Math.floor(left / 128)) bytes.push((left % 128) | 128);
  return [...bytes, left];
}
