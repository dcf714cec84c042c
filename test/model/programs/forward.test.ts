// Checks the one description of a block and the head against the one table of tensors: every program with a forward pass takes
// every tensor of the table, each once and in the table's order.

import { describe, expect, test } from 'vitest';
import type { GptConfig } from '../../../src/model/config.ts';
import { cachedModelGraph } from '../../../src/model/formats/onnx-export.ts';
import { blockForwardProgram } from '../../../src/model/programs/block.ts';
import type { Graph } from '../../../src/model/programs/graph.ts';
import { headLogitsProgram, headTensorNames } from '../../../src/model/programs/head.ts';
import { feedProgram, logitsProgram, passProgram, qkvProgram } from '../../../src/model/programs/serving.ts';
import { blockTable, blockTensors, tensorTable } from '../../../src/model/tensors.ts';

const BASE: GptConfig = {
  vocab_size: 11,
  context_length: 8,
  emb_dim: 6,
  n_heads: 2,
  n_layers: 2,
  drop_rate: 0.1,
  qkv_bias: true,
  tie_weights: false,
};
const CONFIGS = [true, false].flatMap((qkv_bias) =>
  [true, false].map((tie_weights) => ({ ...BASE, qkv_bias, tie_weights })),
);

const sorted = (names: Iterable<string>): string[] => [...names].sort();

/** Returns the tensors that `emit` asks for, in order. */
function asked(config: GptConfig, emit: (weights: { get(name: string): Float32Array }) => Graph): string[] {
  const sizes = new Map(tensorTable(config).map(({ name, size }) => [name, size]));
  const names: string[] = [];
  emit({
    get: (name) => {
      names.push(name);
      return new Float32Array(sizes.get(name)!);
    },
  });
  return names;
}

describe.each(CONFIGS)('with qkv_bias $qkv_bias and tie_weights $tie_weights', (config) => {
  const ofBlock = (block: number): string[] => blockTensors(config, block).map(({ name }) => name);

  test.each([true, false])("training's block, save %s, reads the table's tensors in its order", (save) => {
    const { inputs } = blockForwardProgram(config, { B: 1, T: 4 }, { save });
    const names = [...blockTable(config).keys()];
    expect(inputs.map(({ name }) => String(name)).filter((name) => names.some((own) => own === name))).toEqual(names);
    expect(headLogitsProgram(config, 1).inputs.map(({ name }) => name)).toEqual([
      'x',
      'ln_f.weight',
      'ln_f.bias',
      'projection',
    ]);
  });

  test('serving asks for each tensor of its blocks and the head once', () => {
    const options = { quantization: null };
    const halves = [
      ...asked(config, (weights) => qkvProgram(config, weights, { block: 0, ...options })),
      ...asked(config, (weights) => feedProgram(config, weights, { block: 0, next: true, ...options })),
      ...asked(config, (weights) => feedProgram(config, weights, { block: 1, next: false, ...options })),
      ...asked(config, (weights) => logitsProgram(config, weights, options)),
    ];
    const all = [...ofBlock(0), ...ofBlock(1), ...headTensorNames(config)];
    expect(sorted(halves)).toEqual(sorted(all));
    const range = { firstBlock: 0, endBlock: 2, head: true };
    expect(asked(config, (weights) => passProgram(config, weights, { ...range, ...options }))).toEqual(halves);
  });

  test('the export reads every tensor of the table', () => {
    const { nodes } = cachedModelGraph(config);
    const read = new Set<string>(nodes.flatMap(({ inputs }) => inputs));
    expect(tensorTable(config).filter(({ name }) => !read.has(name))).toEqual([]);
  });
});
