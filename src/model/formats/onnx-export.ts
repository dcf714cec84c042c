// A whole GPT as one ONNX graph with a key/value cache in its inputs and outputs, under the names that transformers.js and
// optimum use. The graph has only standard operators, so that any ONNX runtime can run it. gptd itself serves with the programs
// of programs/serving.ts.
// Letters: B sequences, T new positions, P cached ones, D width, H heads, W = D/H, V vocabulary.

import type { GptConfig } from '../config.ts';
import { blockForward, headForward, type DenseName } from '../programs/forward.ts';
import { GraphBuilder, type Graph, type Value } from '../programs/graph.ts';
import { blockTensorName, projectionName, tensorTable, type BlockTensorName } from '../tensors.ts';

/** Is added to the scores of positions that may not be seen. It is finite, so that a row of padding alone does not become NaN. */
const UNSEEN = -3.4e38;
const ONNX_BOOL = 9;

/**
 * input_ids (B, T), attention_mask (B, P + T), position_ids (B, T), past_key_values.N.{key,value} (B, H, P, W) -> logits
 * (B, T, V), present.N.{key,value} (B, H, P + T, W). The weights are inputs under their names in the table.
 */
export function cachedModelGraph(config: GptConfig): Graph {
  const { emb_dim: D, n_heads: H, n_layers, vocab_size: V } = config;
  const g = new GraphBuilder('gpt2');
  const rows = ['batch_size', 'sequence_length'];
  const ids = g.input('input_ids', rows, 'int64');
  const seen = g.input('attention_mask', ['batch_size', 'total_sequence_length'], 'int64');
  const positions = g.input('position_ids', rows, 'int64');
  const cached = ['batch_size', H, 'past_sequence_length', D / H];
  const past = Array.from({ length: n_layers }, (_, n) => ({
    key: g.input(`past_key_values.${n}.key`, cached),
    value: g.input(`past_key_values.${n}.value`, cached),
  }));
  const weights = new Map(tensorTable(config).map(({ name, shape }) => [name, g.input(name, shape)]));
  const weight = (name: string): Value => weights.get(name)!;
  const mask = attentionMask(g, { ids, seen, cache: past[0].key });

  let x = g.node('Add', [
    g.node('Gather', [weight('wte.weight'), ids]),
    g.node('Gather', [weight('wpe.weight'), positions]),
  ]);
  const attend = (qkv: Value, n: number): Value => {
    const [q, k, v] = g
      .nodes('Split', [qkv, g.integers([D, D, D])], 3, { axis: 2 })
      .map((each) =>
        g.node('Transpose', [g.node('Reshape', [each, g.integers([0, 0, H, D / H])])], { perm: [0, 2, 1, 3] }),
      );
    const keys = g.node('Concat', [past[n].key, k], { axis: 2 });
    const values = g.node('Concat', [past[n].value, v], { axis: 2 });
    const columns = g.node('Transpose', [keys], { perm: [0, 1, 3, 2] });
    const scores = g.node('Mul', [g.node('MatMul', [q, columns]), g.scalar(1 / Math.sqrt(D / H))]);
    const attended = g.node('Softmax', [g.node('Add', [scores, mask])], { axis: -1 });
    const heads = g.node('Transpose', [g.node('MatMul', [attended, values])], { perm: [0, 2, 1, 3] });
    g.output(`present.${n}.key`, keys);
    g.output(`present.${n}.value`, values);
    return g.node('Reshape', [heads, g.integers([0, 0, D])]);
  };
  for (let n = 0; n < n_layers; n++) {
    const block = {
      g,
      tensor: (name: BlockTensorName) => weight(blockTensorName(n, name)),
      // Gemm takes only matrices, and x has the three dimensions (B, T, D).
      dense: (x: Value, layer: DenseName) => {
        const y = g.node('MatMul', [x, weight(blockTensorName(n, `${layer}.weight`))]);
        const bias = weights.get(blockTensorName(n, `${layer}.bias`));
        return bias === undefined ? y : g.node('Add', [y, bias]);
      },
    };
    x = blockForward(block, x, (qkv) => attend(qkv, n)).y;
  }
  const head = {
    g,
    tensor: weight,
    project: (x: Value) =>
      g.node('Gemm', [g.node('Reshape', [x, g.integers([-1, D])]), weight(projectionName(config))], { transB: 1 }),
  };
  const { logits } = headForward(head, x);
  const shape = g.node('Concat', [g.node('Shape', [ids]), g.integers([V])], { axis: 0 });
  g.output('logits', g.node('Reshape', [logits, shape]));
  return g.build();
}

/** Emits a mask (B, 1, T, P + T): 0 where a position may look, UNSEEN on the positions ahead of it and on padding. */
function attentionMask(
  g: GraphBuilder,
  { ids, seen, cache }: { readonly ids: Value; readonly seen: Value; readonly cache: Value },
): Value {
  const integer = (value: bigint): Value => g.constant(BigInt64Array.of(value), []);
  const length = (of: Value, axis: number): Value =>
    g.node('Squeeze', [g.node('Shape', [of], { start: axis, end: axis + 1 })]);
  const pastCount = length(cache, 2);
  const total = g.node('Add', [pastCount, length(ids, 1)]);
  const keys = g.node('Range', [integer(0n), total, integer(1n)]);
  const queries = g.node('Unsqueeze', [g.node('Range', [pastCount, total, integer(1n)]), g.integers([1])]);
  const causal = g.node('LessOrEqual', [keys, queries]);
  const there = g.node('Unsqueeze', [g.node('Cast', [seen], { to: ONNX_BOOL }), g.integers([1, 2])]);
  const allowed = g.node('And', [causal, there]);
  return g.node('Where', [allowed, g.scalar(0), g.scalar(UNSEEN)]);
}
