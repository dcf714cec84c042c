// Runs a Graph operator by operator over TensorFlow.js. Compiling checks every node, makes what depends on constants alone, and
// notes which node reads each value last, so that a run holds no more than it needs.

import { GptdError } from '../../../model/errors.ts';
import type { Constant, Graph, Node, Value } from '../../../model/programs/graph.ts';
import { elementwiseOperators } from './elementwise.ts';
import { layerOperators } from './layers.ts';
import { productOperators } from './products.ts';
import { shapeOperators } from './shapes.ts';
import { Site, type Kernel, type OperatorTable, type Tensor, type Tf } from './site.ts';

export interface Interpretation {
  /**
   * Computes the graph's outputs from all of its inputs. The caller owns both. With `keepValues` nothing is disposed on the way:
   * a surrounding tf.tidy or tf.grads does it.
   */
  run(inputs: ReadonlyMap<string, Tensor>, options?: { readonly keepValues?: boolean }): Tensor[];
  /** Frees the constants. */
  dispose(): void;
}

interface Step {
  readonly node: Node;
  readonly kernel: Kernel;
  /** The values that no later node reads: they are disposed after this node. */
  readonly lastReads: readonly Value[];
}

export const operatorTable = (tf: Tf): OperatorTable => ({
  ...elementwiseOperators(tf),
  ...layerOperators(tf),
  ...productOperators(tf),
  ...shapeOperators(tf),
});

/** Makes a tensor of an array. TensorFlow.js has neither int64 nor uint8: both become int32. Throws when a value does not fit. */
export function upload(tf: Tf, { data, dims }: Pick<Constant, 'data' | 'dims'>): Tensor {
  const shape = [...dims];
  if (data instanceof Float32Array) return tf.tensor(data, shape, 'float32');
  if (data instanceof Uint8Array) return tf.tensor(Int32Array.from(data), shape, 'int32');
  const narrow = Int32Array.from(data, Number);
  if (narrow.some((value, i) => BigInt(value) !== data[i])) {
    throw new GptdError(
      'engine_failed',
      'TensorFlow.js has no 64-bit integers, and a value does not fit into 32 bits.',
    );
  }
  return tf.tensor(narrow, shape, 'int32');
}

/** Compiles a graph. Throws `engine_failed` for a node that the operators here cannot run, and names it. */
export function interpret(tf: Tf, operators: OperatorTable, graph: Graph): Interpretation {
  const constants = new Map<string, Constant>(graph.constants.map((constant) => [constant.name, constant]));
  const kept: Tensor[] = [];
  const reads = new Set<string>();
  const keep = (make: () => Tensor): Tensor => {
    const tensor = tf.keep(tf.tidy(make));
    kept.push(tensor);
    return tensor;
  };
  const dispose = (): void => tf.dispose(kept.splice(0));
  try {
    const kernels = graph.nodes.map((node) => {
      const type = node.domain === '' ? node.op : `${node.domain}:${node.op}`;
      const operator = Object.hasOwn(operators, type) ? operators[type] : undefined;
      const site = new Site(node, {
        graphName: graph.name,
        constants,
        keep,
        upload: (constant) => upload(tf, constant),
        onRead: (name) => reads.add(name),
      });
      if (operator === undefined) return site.refuse('the operator is not known to this engine');
      const kernel = operator(site);
      site.finish();
      return kernel;
    });
    const needed = graph.constants.filter(({ name }) => reads.has(name));
    const uploaded = new Map(needed.map((constant) => [constant.name, keep(() => upload(tf, constant))]));
    const steps = withLastReads(graph, kernels);
    return { run: (inputs, options = {}) => run(tf, graph, { steps, inputs, uploaded, ...options }), dispose };
  } catch (error) {
    dispose();
    throw error;
  }
}

/** Inputs, constants and outputs outlive the run. Every other value is disposed after its last reader, or at once without one. */
function withLastReads(graph: Graph, kernels: readonly Kernel[]): Step[] {
  const outlive = new Set<string>(graph.outputs.map(({ name }) => name));
  const last = new Map<Value, number>();
  for (const [index, node] of graph.nodes.entries()) {
    for (const name of node.outputs) last.set(name, index);
    for (const name of node.inputs) if (name !== '' && last.has(name)) last.set(name, index);
  }
  const lastReads = graph.nodes.map((): Value[] => []);
  for (const [name, index] of last) if (!outlive.has(name)) lastReads[index].push(name);
  return graph.nodes.map((node, index) => ({ node, kernel: kernels[index], lastReads: lastReads[index] }));
}

function run(
  tf: Tf,
  graph: Graph,
  {
    steps,
    inputs,
    uploaded,
    keepValues = false,
  }: {
    steps: readonly Step[];
    inputs: ReadonlyMap<string, Tensor>;
    uploaded: ReadonlyMap<string, Tensor>;
    keepValues?: boolean;
  },
): Tensor[] {
  const values = new Map<string, Tensor>([...uploaded, ...inputs]);
  const made = new Set<Tensor>();
  try {
    for (const { node, kernel, lastReads } of steps) {
      const outputs = tf.tidy(() => kernel(values).slice(0, node.outputs.length));
      if (outputs.length < node.outputs.length) {
        throw new GptdError('engine_failed', `TensorFlow.js: ${node.op} in "${graph.name}" has too many outputs.`);
      }
      for (const [i, name] of node.outputs.entries()) {
        values.set(name, outputs[i]);
        made.add(outputs[i]);
      }
      if (keepValues) continue;
      for (const name of lastReads) {
        const value = values.get(name)!;
        values.delete(name);
        made.delete(value);
        value.dispose();
      }
    }
    const results = graph.outputs.map(({ name }) => values.get(name)!);
    for (const result of results) made.delete(result);
    return results;
  } finally {
    if (!keepValues) tf.dispose([...made]);
  }
}
