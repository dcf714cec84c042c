// The forward pass of a block and of the head, written once: training, serving and the ONNX export emit it from here. Three
// things differ between them: how a program gets the layers' tensors and multiplies with them, which attention stands between
// the two halves of a block, and whether there is dropout. The tensors' names, shapes and order are in tensors.ts.
//   a = x + drop(c_proj(attention(c_attn(ln_1(x)))))        y = a + drop(c_proj(gelu(c_fc(ln_2(a)))))

import type { BlockLayerName, BlockTensorName } from '../tensors.ts';
import type { GraphBuilder, Value } from './graph.ts';
import { gelu, layerNorm } from './layers.ts';

type NormName = Extract<BlockLayerName, `ln_${string}`>;
/** The layers whose weight is a matrix. */
export type DenseName = Exclude<BlockLayerName, NormName>;

/** How one program computes the layers of one block. */
export interface BlockLayers {
  readonly g: GraphBuilder;
  /** Returns a tensor as a value of the program, either an input or a constant. */
  readonly tensor: (name: BlockTensorName) => Value;
  /** Multiplies rows with the layer's weight and adds the layer's bias, where the configuration has one. */
  readonly dense: (rows: Value, layer: DenseName) => Value;
  /** Applies dropout to a residual branch. It is absent in programs without dropout. */
  readonly drop?: (rows: Value, branch: 'attention' | 'feedForward') => Value;
}

/** What a block computes after attention. All are (rows, D), except u, which is as wide as the feed-forward. */
interface BlockRows {
  /** The block's input with the attention branch added. */
  readonly a: Value;
  /** The feed-forward's rows before the activation. */
  readonly u: Value;
  /** The block's result. */
  readonly y: Value;
}

/** x (rows, D) -> normalized, scaled and shifted (rows, D). */
export const blockNorm = ({ g, tensor }: Pick<BlockLayers, 'g' | 'tensor'>, x: Value, layer: NormName): Value =>
  layerNorm(g, x, { weight: tensor(`${layer}.weight`), bias: tensor(`${layer}.bias`) });

/** The first half of a block: x (rows, D) -> qkv (rows, 3D). */
export const beforeAttention = (layers: BlockLayers, x: Value): Value =>
  layers.dense(blockNorm(layers, x, 'ln_1'), 'attn.c_attn');

/** The second half of a block: x (rows, D), the block's input, and context (rows, D), the result of attention -> BlockRows. */
export function afterAttention(layers: BlockLayers, x: Value, context: Value): BlockRows {
  const { g, dense, drop = (rows: Value): Value => rows } = layers;
  const a = g.node('Add', [x, drop(dense(context, 'attn.c_proj'), 'attention')]);
  const u = dense(blockNorm(layers, a, 'ln_2'), 'mlp.c_fc');
  const fed = dense(gelu(g, u), 'mlp.c_proj');
  return { a, u, y: g.node('Add', [a, drop(fed, 'feedForward')]) };
}

/** A whole block: x (rows, D) -> BlockRows. `attend` turns qkv (rows, 3D) into context (rows, D). */
export const blockForward = (layers: BlockLayers, x: Value, attend: (qkv: Value) => Value): BlockRows =>
  afterAttention(layers, x, attend(beforeAttention(layers, x)));

/** How one program computes the layers of the head. */
export interface HeadLayers {
  readonly g: GraphBuilder;
  readonly tensor: (name: 'ln_f.weight' | 'ln_f.bias') => Value;
  /** Multiplies rows (rows, D) with the transposed projection -> (rows, V). */
  readonly project: (rows: Value) => Value;
}

/** x (rows, D) -> the normalized rows (rows, D) and their logits (rows, V). */
export function headForward({ g, tensor, project }: HeadLayers, x: Value): { normalized: Value; logits: Value } {
  const normalized = layerNorm(g, x, { weight: tensor('ln_f.weight'), bias: tensor('ln_f.bias') });
  return { normalized, logits: project(normalized) };
}
