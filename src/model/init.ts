// The weights that a new model begins with. They are those of `torch.manual_seed(seed)` followed by building Raschka's GPTModel,
// to the bit where PyTorch takes its AVX2 path (ATen/native/cpu/DistributionTemplates.h and avx_mathfun.h, whose log, sine
// and cosine are Cephes' single-precision ones). GPT-2's own scheme draws from the same generator in the same order.
// Letters: V vocabulary, C context, D width.

import type { GptConfig } from './config.ts';
import { assert } from './errors.ts';
import { createMt19937, type Mt19937 } from './random/mt19937.ts';
import { tensorTable, type TensorSpec } from './tensors.ts';

export type InitScheme = 'torch' | 'gpt2';

interface InitialTensor {
  readonly name: string;
  /** The tensor's values in the layout of the tensor table. The receiver owns the array and may transfer it. */
  readonly data: Float32Array;
}

const GPT2_STD = 0.02;

/**
 * Yields every tensor of the table, in table order, one at a time. Beside the yielded tensor only one matrix is in memory.
 * `seed` is a non-negative integer below 2^53, of which the low 32 bits count.
 */
export function* initialTensors(
  config: GptConfig,
  options: { readonly seed: number; readonly scheme: InitScheme },
): Generator<InitialTensor, void, undefined> {
  const table = tensorTable(config);
  const source: Source = { words: createMt19937(options.seed), spareNormal: undefined };
  const residualStd = GPT2_STD / Math.sqrt(2 * config.n_layers);
  // A torch Linear is (out, in). It is drawn into `drawn`, then transposed into the table's (in, out).
  const blockMatrices = table.filter(({ place, matrix }) => place === 'block' && matrix);
  const drawn = new Float32Array(Math.max(...blockMatrices.map(({ size }) => size)));

  const drawWeight = (out: Float32Array, { fanIn, residual }: { fanIn: number; residual: boolean }): void => {
    if (options.scheme === 'torch') fillUniform(out, { source, bound: kaimingBound(fanIn) });
    else fillNormal(out, { source, std: residual ? residualStd : GPT2_STD });
  };
  const drawBias = (out: Float32Array, fanIn: number): void => {
    if (options.scheme === 'torch') fillUniform(out, { source, bound: 1 / Math.sqrt(fanIn) });
  };

  // W_query, W_key and W_value are drawn as three Linears, each with its bias. So the bias is drawn before its turn in the table.
  let attentionBias: Float32Array | undefined;
  for (const tensor of table) {
    const { name, initializer } = tensor;
    const data = new Float32Array(tensor.size);
    switch (initializer.type) {
      case 'zeros':
        break;
      case 'ones':
        data.fill(1);
        break;
      case 'embedding':
        fillNormal(data, { source, std: options.scheme === 'torch' ? 1 : GPT2_STD });
        break;
      case 'linearWeight': {
        if (tensor.place === 'head') {
          drawWeight(data, initializer);
          break;
        }
        const [rows, columns] = tensor.shape;
        const parts = isAttentionInput(tensor) ? 3 : 1;
        const width = columns / parts;
        if (parts === 3 && config.qkv_bias) attentionBias = new Float32Array(columns);
        for (let part = 0; part < parts; part++) {
          const matrix = drawn.subarray(0, rows * width);
          drawWeight(matrix, initializer);
          transposeInto(data, { source: matrix, rows: width, columns: rows, stride: columns, offset: part * width });
          if (attentionBias !== undefined) drawBias(attentionBias.subarray(part * width, (part + 1) * width), rows);
        }
        break;
      }
      case 'linearBias':
        if (isAttentionInput(tensor)) {
          assert(attentionBias !== undefined, `${name} comes after its weight`);
          data.set(attentionBias);
          attentionBias = undefined;
        } else {
          drawBias(data, initializer.fanIn);
        }
        break;
      default:
        initializer satisfies never;
    }
    yield { name, data };
  }
}

const isAttentionInput = (tensor: TensorSpec): boolean => tensor.name.includes('.attn.c_attn.');

/**
 * Returns the bound of `kaiming_uniform_(a=sqrt(5))`, in torch's order of operations. It is about 1/sqrt(fanIn), but not always
 * the same float.
 */
const kaimingBound = (fanIn: number): number => Math.sqrt(3) * (Math.sqrt(2 / (1 + 5)) / Math.sqrt(fanIn));

// ---- PyTorch's distributions -----------------------------------------------------------------------------------------

/**
 * The state of torch's CPU generator: the stream of words, and the second sample that a scalar normal draw leaves for the next.
 */
interface Source {
  readonly words: Mt19937;
  spareNormal: number | undefined;
}

/** The number of draws that are fetched at once, a multiple of 16. */
const WORDS_AT_ONCE = 8192;
const words = new Uint32Array(WORDS_AT_ONCE);

/**
 * Overwrites `out` with `uniform_(-bound, bound)`. Each value has 24 random bits and is rounded to f32 once, as by torch's fused
 * multiply-add.
 */
function fillUniform(out: Float32Array, options: { readonly source: Source; readonly bound: number }): void {
  const bound = Math.fround(options.bound);
  const step = Math.fround(bound + bound) * 2 ** -24;
  for (let start = 0; start < out.length; start += WORDS_AT_ONCE) {
    const count = Math.min(WORDS_AT_ONCE, out.length - start);
    options.source.words.fill(words.subarray(0, count));
    for (let i = 0; i < count; i++) out[start + i] = (words[i] & 0xffffff) * step - bound;
  }
}

/**
 * Overwrites `out` with `normal_(0, std)`. From 16 values on, torch transforms groups of 16, and when the length is not a
 * multiple of 16, it draws the last 16 values again. Below 16 values it draws scalars in double precision.
 */
function fillNormal(out: Float32Array, options: { readonly source: Source; readonly std: number }): void {
  const { source } = options;
  if (out.length < 16) {
    for (let i = 0; i < out.length; i++) out[i] = nextNormal(source) * options.std;
    return;
  }
  const std = Math.fround(options.std);
  for (let start = 0; start < out.length; start += WORDS_AT_ONCE) {
    const count = Math.min(WORDS_AT_ONCE, out.length - start);
    source.words.fill(words.subarray(0, count));
    for (let group = 0; group + 16 <= count; group += 16) boxMuller16(out, { at: start + group, from: group, std });
  }
  if (out.length % 16 !== 0) {
    source.words.fill(words.subarray(0, 16));
    boxMuller16(out, { at: out.length - 16, from: 0, std });
  }
}

/** Returns a sample of torch's `normal_distribution<double>(0, 1)`. Two draws of 53 bits make two samples, of which one waits. */
function nextNormal(source: Source): number {
  if (source.spareNormal !== undefined) {
    const spare = source.spareNormal;
    source.spareNormal = undefined;
    return spare;
  }
  const theta = 2 * Math.PI * nextUniform53(source);
  const radius = Math.sqrt(-2 * Math.log1p(-nextUniform53(source)));
  source.spareNormal = radius * Math.sin(theta);
  return radius * Math.cos(theta);
}

function nextUniform53(source: Source): number {
  const high = source.words.next() & 0x1fffff;
  return (high * 2 ** 32 + source.words.next()) * 2 ** -53;
}

// Every operation below rounds to f32 as the AVX2 code does. A product plus a sum inside one `f` is a fused
// multiply-add: the product of two floats is exact in double precision.
const f = Math.fround;
const TWO_PI = f(2 * Math.PI);
const SQRT_HALF = f(Math.SQRT1_2);
const LOG_P0 = f(7.0376836292e-2);
const LOG_P1 = f(-1.151461031e-1);
const LOG_P2 = f(1.167699874e-1);
const LOG_P3 = f(-1.2420140846e-1);
const LOG_P4 = f(1.4249322787e-1);
const LOG_P5 = f(-1.6668057665e-1);
const LOG_P6 = f(2.0000714765e-1);
const LOG_P7 = f(-2.4999993993e-1);
const LOG_P8 = f(3.3333331174e-1);
const LOG_Q1 = f(-2.1219444e-4);
const LOG_Q2 = f(0.693359375);
const FOUR_OVER_PI = f(1.27323954473516);
const MINUS_DP1 = f(-0.78515625);
const MINUS_DP2 = f(-2.4187564849853516e-4);
const MINUS_DP3 = f(-3.774894977445941e-8);
const SIN_P0 = f(-1.9515295891e-4);
const SIN_P1 = f(8.3321608736e-3);
const SIN_P2 = f(-1.6666654611e-1);
const COS_P0 = f(2.443315711809948e-5);
const COS_P1 = f(-1.388731625493765e-3);
const COS_P2 = f(4.166664568298827e-2);

/**
 * Overwrites out[at .. at+16) with normals made of words[from .. from+16). The first eight words give the radii, the others the
 * angles.
 */
function boxMuller16(
  out: Float32Array,
  options: { readonly at: number; readonly from: number; readonly std: number },
): void {
  const { at, from, std } = options;
  for (let j = 0; j < 8; j++) {
    const radius = f(Math.sqrt(f(-2 * logOfUnit(2 ** 24 - (words[from + j] & 0xffffff)))));

    // For the sine and the cosine, theta in [0, 2 pi] is reduced to [-pi/4, pi/4] around the nearest multiple of pi/2.
    let x = f(TWO_PI * ((words[from + j + 8] & 0xffffff) * 2 ** -24));
    const octant = (Math.trunc(f(x * FOUR_OVER_PI)) + 1) & ~1;
    x = f(octant * MINUS_DP1 + x);
    x = f(octant * MINUS_DP2 + x);
    x = f(octant * MINUS_DP3 + x);
    const z = f(x * x);
    let cosine = f(COS_P0 * z + COS_P1);
    cosine = f(cosine * z + COS_P2);
    cosine = f(cosine * z);
    cosine = f(f(cosine * z - f(z * 0.5)) + 1);
    let sine = f(SIN_P0 * z + SIN_P1);
    sine = f(sine * z + SIN_P2);
    sine = f(f(sine * z) * x + x);

    const swapped = (octant & 2) !== 0;
    const s = swapped ? cosine : sine;
    const c = swapped ? sine : cosine;
    out[at + j] = f(radius * ((octant + 2) & 4 ? -c : c)) * std;
    out[at + j + 8] = f(radius * (octant & 4 ? -s : s)) * std;
  }
}

/** Returns Cephes' logf of m / 2^24, for an integer m from 1 to 2^24. */
function logOfUnit(m: number): number {
  const bits = 32 - Math.clz32(m);
  let e = bits - 24;
  let x = m / POWERS_OF_TWO[bits];
  if (x < SQRT_HALF) {
    e -= 1;
    x = f(x - 1 + x);
  } else {
    x = f(x - 1);
  }
  const z = f(x * x);
  let y = f(LOG_P0 * x + LOG_P1);
  y = f(y * x + LOG_P2);
  y = f(y * x + LOG_P3);
  y = f(y * x + LOG_P4);
  y = f(y * x + LOG_P5);
  y = f(y * x + LOG_P6);
  y = f(y * x + LOG_P7);
  y = f(y * x + LOG_P8);
  y = f(y * x);
  y = f(y * z + f(e * LOG_Q1));
  y = f(y - f(z * 0.5));
  return f(e * LOG_Q2 + f(x + y));
}

const POWERS_OF_TWO = Float64Array.from({ length: 26 }, (_, exponent) => 2 ** exponent);

// ---- Layout ----------------------------------------------------------------------------------------------------------

const TILE = 32;

/**
 * Writes the transpose of `source` (rows, columns) into `out`, whose rows are `stride` long, at column `offset`. The work goes
 * tile by tile, so that both sides stay in the cache.
 */
function transposeInto(
  out: Float32Array,
  options: {
    readonly source: Float32Array;
    readonly rows: number;
    readonly columns: number;
    readonly stride: number;
    readonly offset: number;
  },
): void {
  const { source, rows, columns, stride, offset } = options;
  for (let row0 = 0; row0 < rows; row0 += TILE) {
    const rowEnd = Math.min(row0 + TILE, rows);
    for (let column0 = 0; column0 < columns; column0 += TILE) {
      const columnEnd = Math.min(column0 + TILE, columns);
      for (let column = column0; column < columnEnd; column++) {
        const to = column * stride + offset;
        for (let row = row0; row < rowEnd; row++) out[to + row] = source[row * columns + column];
      }
    }
  }
}
