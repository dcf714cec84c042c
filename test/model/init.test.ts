// Checks the initialization against PyTorch 1.13 on a CPU. The pinned figures and digests come from a run of PyTorch that calls
// torch.manual_seed(seed) and builds Raschka's GPTModel(config).

import { expect, test } from 'vitest';
import { PRESETS, type GptConfig } from '../../src/model/config.ts';
import { weightsDigest } from '../../src/model/digest.ts';
import { initialTensors, type InitScheme } from '../../src/model/init.ts';
import { createMt19937 } from '../../src/model/random/mt19937.ts';
import { tensorTable } from '../../src/model/tensors.ts';

const small: GptConfig = { ...PRESETS.GPT_CONFIG_124M, emb_dim: 256, n_heads: 4, n_layers: 4 };
const tiny: GptConfig = {
  vocab_size: 257,
  context_length: 32,
  emb_dim: 48,
  n_heads: 4,
  n_layers: 3,
  drop_rate: 0,
  qkv_bias: false,
  tie_weights: false,
};

function allTensors(config: GptConfig, options: { seed: number; scheme: InitScheme }): Map<string, Float32Array> {
  return new Map(Array.from(initialTensors(config, options), ({ name, data }) => [name, data]));
}

function digestOf(config: GptConfig, seed: number): string {
  const digest = weightsDigest(config);
  for (const { name, data } of initialTensors(config, { seed, scheme: 'torch' }))
    digest.update(name, new Uint8Array(data.buffer));
  return digest.digest();
}

function expectClose(actual: readonly number[], expected: readonly number[]): void {
  expect(actual).toHaveLength(expected.length);
  actual.forEach((value, i) => expect(Math.abs(value - expected[i])).toBeLessThan(1e-8));
}

test.each([
  [101, tiny, '4715aca9dec59e9fd5ef54fa24f2a99be42bd38336ac455dded9ce4f8ffc7102'],
  [
    102,
    { ...tiny, vocab_size: 300, context_length: 24, emb_dim: 64, n_heads: 8, n_layers: 4, qkv_bias: true },
    'bc914c369a3db81df7d866fa05371c367132dcae6f7a9a420eab6597bb7038f1',
  ],
  [
    103,
    { ...tiny, vocab_size: 512, context_length: 40, emb_dim: 64, n_layers: 2, qkv_bias: true, tie_weights: true },
    'ca311e7491e4b81f735f221d4610bb4657204b44d08fca2d0a8c1d93c8c90413',
  ],
])("all weights under seed %i are PyTorch's, to the bit", (seed, config, digest) => {
  expect(digestOf(config, seed)).toBe(digest);
});

test('the 30M model under seed 123 has the values, means and norms of PyTorch', () => {
  const D = small.emb_dim;
  // PyTorch keeps a linear layer as (out, in). This returns the columns [first, first + width) of an (in, columns) matrix in that
  // order.
  const linear = (data: Float32Array, { first, width, columns }: { first: number; width: number; columns: number }) => {
    const rows = data.length / columns;
    return Array.from({ length: rows * width }, (_, i) => data[(i % rows) * columns + first + Math.floor(i / rows)]);
  };
  const tensors = allTensors(small, { seed: 123, scheme: 'torch' });
  const attention = tensors.get('h.0.attn.c_attn.weight')!;
  const check = (
    values: ArrayLike<number>,
    wanted: { first: number[]; last: number[]; mean: number; l2: number },
  ): void => {
    const n = values.length;
    expectClose([values[0], values[1], values[2], values[3]], wanted.first);
    expectClose([values[n - 2], values[n - 1]], wanted.last);
    let sum = 0;
    let squares = 0;
    for (let i = 0; i < n; i++) {
      sum += values[i];
      squares += values[i] ** 2;
    }
    expect(sum / n).toBeCloseTo(wanted.mean, 10);
    expect(Math.sqrt(squares)).toBeCloseTo(wanted.l2, 7);
  };
  check(tensors.get('wte.weight')!, {
    first: [0.337370187, -0.177777216, -0.303527594, -0.588011861],
    last: [0.214415073, 0.300565958],
    mean: 0.000210886442774784,
    l2: 3587.7584829738794,
  });
  check(tensors.get('wpe.weight')!, {
    first: [0.542322636, -0.122386917, -1.41496706, -0.314160764],
    last: [2.0521822, 1.98671091],
    mean: 0.00019631496894164085,
    l2: 511.513497373086,
  });
  check(linear(attention, { first: 0, width: D, columns: 3 * D }), {
    first: [0.0150981173, 0.0226202086, -0.0621346161, -0.0228366256],
    last: [0.031368956, -0.0513222516],
    mean: 0.0002296763032063609,
    l2: 9.245857855420416,
  });
  check(linear(attention, { first: 2 * D, width: D, columns: 3 * D }), {
    first: [0.0193623975, 0.0510721728, -0.0271739811, 0.0559632406],
    last: [0.057435371, 0.00891433656],
    mean: -4.866374513312621e-5,
    l2: 9.230893183458914,
  });
  check(tensors.get('h.0.attn.c_proj.bias')!, {
    first: [0.00870389491, 0.027145043, 0.00782926381, 0.0447228029],
    last: [-0.00359065086, -0.0512098819],
    mean: -0.0030158820445649326,
    l2: 0.5654229884758597,
  });
  check(linear(tensors.get('h.3.mlp.c_fc.weight')!, { first: 0, width: 4 * D, columns: 4 * D }), {
    first: [-0.0108239949, 0.0545356944, 0.00869589299, 0.0497944355],
    last: [-0.0449477956, 0.00734483451],
    mean: 0.00015028208798639753,
    l2: 18.460929766013756,
  });
  check(linear(tensors.get('h.3.mlp.c_proj.weight')!, { first: 0, width: D, columns: D }), {
    first: [0.0269587412, -0.0166927651, 0.010947872, -0.0122401901],
    last: [-0.023061052, -0.00868313015],
    mean: 3.399921941138473e-5,
    l2: 9.235737731796327,
  });
  check(tensors.get('h.3.mlp.c_proj.bias')!, {
    first: [-0.0161099061, 0.0084705092, -0.0161119886, 0.0203981139],
    last: [-0.0256132968, 0.0145078711],
    mean: 0.0009593656868673861,
    l2: 0.2940508646420417,
  });
  check(tensors.get('lm_head.weight')!, {
    first: [-0.0287021697, 0.0349875391, 0.03407491, -0.0197327808],
    last: [-0.0470421687, -0.0440154746],
    mean: -8.37248985935501e-6,
    l2: 129.4258388555845,
  });
});

test('the 124M model under seed 123 begins and ends as in PyTorch', () => {
  const ends = new Map<string, number[]>();
  for (const { name, data } of initialTensors(PRESETS.GPT_CONFIG_124M, { seed: 123, scheme: 'torch' })) {
    if (name === 'wte.weight' || name === 'lm_head.weight')
      ends.set(name, [...data.subarray(0, 4), ...data.subarray(-2)]);
  }
  expectClose(
    ends.get('wte.weight')!,
    [0.337370187, -0.177777216, -0.303527594, -0.588011861, 0.260553956, 0.588852406],
  );
  expectClose(
    ends.get('lm_head.weight')!,
    [0.0275941323, -0.0321561359, 0.0332383178, 0.00433513848, -0.005744569, -0.012392085],
  );
});

test('tensors of fewer than 16 values are drawn one by one, and the spare value of an odd tensor begins the next one', () => {
  // These are torch.manual_seed(0); torch.randn(12).
  const randn = [1.541, -0.2934, -2.1788, 0.5684, -1.0845, -1.3986, 0.4033, 0.838, -0.7193, -0.4033, -0.5966, 0.182];
  const config: GptConfig = { ...tiny, vocab_size: 3, context_length: 9, emb_dim: 1, n_heads: 1, n_layers: 1 };
  const tensors = allTensors(config, { seed: 0, scheme: 'torch' });
  const drawn = [...tensors.get('wte.weight')!, ...tensors.get('wpe.weight')!];
  expect(drawn.map((value) => value.toFixed(4))).toEqual(randn.map((value) => value.toFixed(4)));
});

test('the last 16 values are drawn anew when the length is no multiple of 16', () => {
  const n = 3 * 7;
  const config: GptConfig = { ...tiny, vocab_size: 3, context_length: 3, emb_dim: 7, n_heads: 1, n_layers: 1 };
  const actual = allTensors(config, { seed: 5, scheme: 'torch' });
  const generator = createMt19937(5);
  const plainNormal = (): number[] => {
    const draw = (): number => (generator.next() & 0xffffff) / 2 ** 24;
    const values = Array.from({ length: n }, draw);
    const transform = (at: number): void => {
      for (let j = at; j < at + 8; j++) {
        const radius = Math.sqrt(-2 * Math.log(1 - values[j]));
        const theta = 2 * Math.PI * values[j + 8];
        values[j] = radius * Math.cos(theta);
        values[j + 8] = radius * Math.sin(theta);
      }
    };
    transform(0);
    for (let i = n - 16; i < n; i++) values[i] = draw();
    transform(n - 16);
    return values;
  };
  for (const name of ['wte.weight', 'wpe.weight']) {
    const wanted = plainNormal();
    [...actual.get(name)!].forEach((value, i) => expect(value).toBeCloseTo(wanted[i], 5));
  }
});

test('tensors come in the order and with the sizes of the table, and norms are ones and zeros', () => {
  for (const config of [tiny, { ...tiny, qkv_bias: true, tie_weights: true }]) {
    const table = tensorTable(config);
    const drawn = [...initialTensors(config, { seed: 1, scheme: 'gpt2' })];
    expect(drawn.map(({ name, data }) => [name, data.length])).toEqual(table.map(({ name, size }) => [name, size]));
    const named = new Map(drawn.map(({ name, data }) => [name, data]));
    expect(named.get('h.1.ln_2.weight')!.every((value) => value === 1)).toBe(true);
    expect(named.get('ln_f.bias')!.every((value) => value === 0)).toBe(true);
  }
});

test("gpt2's scheme is torch's stream at std 0.02, its residual projections are smaller, its biases are zero", () => {
  const config: GptConfig = { ...tiny, emb_dim: 96, qkv_bias: true };
  const torch = allTensors(config, { seed: 9, scheme: 'torch' });
  const gpt2 = allTensors(config, { seed: 9, scheme: 'gpt2' });
  for (const name of ['wte.weight', 'wpe.weight']) {
    const wanted = torch.get(name)!.map((value) => value * Math.fround(0.02));
    expect(gpt2.get(name)).toEqual(wanted);
  }
  const std = (name: string): number => {
    const data = gpt2.get(name)!;
    return Math.sqrt(data.reduce((sum, value) => sum + value * value, 0) / data.length);
  };
  expect(std('h.2.attn.c_attn.weight') / 0.02).toBeCloseTo(1, 1);
  expect(std('h.2.mlp.c_fc.weight') / 0.02).toBeCloseTo(1, 1);
  expect(std('lm_head.weight') / 0.02).toBeCloseTo(1, 1);
  expect((std('h.2.attn.c_proj.weight') / 0.02) * Math.sqrt(6)).toBeCloseTo(1, 1);
  expect((std('h.2.mlp.c_proj.weight') / 0.02) * Math.sqrt(6)).toBeCloseTo(1, 1);
  for (const [name, data] of gpt2) {
    if (name.endsWith('.bias')) expect(data.every((value) => value === 0)).toBe(true);
  }
});

test('another seed gives another model', () => {
  expect(digestOf(tiny, 102)).not.toBe(digestOf(tiny, 101));
});
