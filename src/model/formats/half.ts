// Converts IEEE 754 single precision to half precision, rounded to nearest with ties to even, as every other library rounds. The
// conversion back is in safetensors.ts.

const INFINITY = 0x7c00;

/** Returns the 16 bits of each value. A value that is too large becomes infinity, but GPT weights are far below 65504. */
export function toHalf(values: Float32Array): Uint16Array<ArrayBuffer> {
  const bits = new Uint32Array(values.buffer, values.byteOffset, values.length);
  return Uint16Array.from(bits, halfOf);
}

/** Converts the 32 bits of a single to the 16 bits of a half. */
export function halfOf(single: number): number {
  const sign = (single >>> 16) & 0x8000;
  const magnitude = single & 0x7fffffff;
  if (magnitude > 0x7f800000) return sign | INFINITY | 0x200;
  // Values from 65520 on become infinity: 65520 is halfway between the largest half and what would come next.
  if (magnitude >= 0x477ff000) return sign | INFINITY;
  if (magnitude < 0x33000000) return sign;
  const exponent = magnitude >>> 23;
  // Below 2^-14 a half has no implicit leading one, so more bits of the significand are dropped.
  const dropped = exponent < 113 ? 126 - exponent : 13;
  const significand = exponent < 113 ? (magnitude & 0x7fffff) | 0x800000 : magnitude - (112 << 23);
  const kept = significand >>> dropped;
  const rest = significand & ((1 << dropped) - 1);
  const half = 1 << (dropped - 1);
  // A carry out of the significand raises the exponent, which is what rounding up means there.
  return sign | (kept + (rest > half || (rest === half && (kept & 1) === 1) ? 1 : 0));
}
